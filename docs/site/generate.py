"""Write the parts of the documentation that are made from the code: the commands, and the table of settings.

    python docs/site/generate.py

tests/test_docs.py compares what is in the folder with what this would write.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import click

from monailabel_xnat.cli.main import COMMANDS, program
from monailabel_xnat.config import Settings
from monailabel_xnat.values import Secret

DOCS = Path(__file__).parents[1]
SETTINGS_MARKS = re.compile(r"(<!-- settings:.*?-->\n).*?(<!-- end of settings -->)", re.DOTALL)

COMMANDS_HEAD = """# Commands

This page is made from the `--help` of the commands by `docs/site/generate.py`; a test compares the two.

Each option can also be given as an environment variable: `MONAILABEL_XNAT_PULL_LAYOUT=nnunet` stands for
`pull --layout nnunet`.
Which XNAT a command works on is one of the [settings](settings.md).
"""
START_SERVER = """## monailabel-xnat start_server

Start MONAI Label's server with any app on XNAT. It takes all options of `monailabel start_server`, and leaves
them to MONAI Label; `monailabel-xnat start_server --help` prints them. See [On your XNAT](your-xnat.md).
"""


def main() -> None:
    """Write the pages."""
    (DOCS / "commands.md").write_text(commands_page(), encoding="utf-8")
    page = DOCS / "settings.md"
    page.write_text(with_settings_table(page.read_text(encoding="utf-8")), encoding="utf-8")


def commands_page() -> str:
    """Return the page that shows the help of each command."""
    parts = [COMMANDS_HEAD, _section(program, "monailabel-xnat")]
    context = click.Context(program, info_name="monailabel-xnat")
    for row in COMMANDS:
        if row.name == "start_server":  # its options are MONAI Label's, and differ between its versions
            parts.append(START_SERVER)
            continue
        command = program.get_command(context, row.name)  # type: ignore[attr-defined]
        parts += [_section(found, name) for name, found in _with_children(command, f"monailabel-xnat {row.name}")]
    return "\n".join(parts)


def _with_children(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for child, found in sorted(getattr(command, "commands", {}).items()):
        yield from _with_children(found, f"{name} {child}")


def _section(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=100, help_option_names=["-h", "--help"])
    return f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"


def with_settings_table(page: str) -> str:
    """Return a page with the table of all settings between its two marks."""
    return SETTINGS_MARKS.sub(lambda found: f"{found[1]}{settings_table()}\n{found[2]}", page)


def settings_table() -> str:
    """Return the table of all settings: name, default and meaning."""
    rows = [
        f"| `{field.name}` | {_shown(field.default)} | {field.metadata['meaning']} |"
        for field in dataclasses.fields(Settings)
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        default = ",".join(default)
    if isinstance(default, bool):
        default = str(default).lower()
    if default in (None, "") or isinstance(default, Secret):
        return ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


if __name__ == "__main__":
    main()
