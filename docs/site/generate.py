"""Write the parts of the documentation that are made from the code: commands, settings, what the sandbox's tests claim.

    python docs/site/generate.py

tests/test_docs.py compares what is in the folder with what this would write.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from monailabel_xnat.cli.main import COMMANDS, program
from monailabel_xnat.config import Secret, Settings

DOCS = Path(__file__).parents[1]
SANDBOX_TESTS = DOCS.parent / "tests" / "sandbox"
SETTINGS_MARKS = re.compile(r"(<!-- settings:.*?-->\n).*?(<!-- end of settings -->)", re.DOTALL)
CLAIM_MARKS = re.compile(r"(<!-- claims:.*?-->\n).*?(<!-- end of claims -->)", re.DOTALL)

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
    page = DOCS / "sandbox.md"
    page.write_text(with_claims(page.read_text(encoding="utf-8")), encoding="utf-8")


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


class Claim(NamedTuple):
    """What a test of the sandbox says about XNAT: the test, its area, and the sources that say so."""

    test: str
    area: str
    sources: tuple[str, ...]


def claims() -> list[Claim]:
    """Return the claims of all tests in tests/sandbox that carry the mark ``claim``, or whose module does."""
    return [found for path in sorted(SANDBOX_TESTS.glob("test_*.py")) for found in _claims_of(path)]


def _claims_of(path: Path) -> Iterator[Claim]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    of_module = [
        node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    whole = next((mark for value in of_module if (mark := _mark(list(ast.walk(value))))), None)
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            mark = _mark(node.decorator_list) or whole
            if mark:
                yield Claim(f"{path.stem}::{node.name}", mark[0], tuple(mark[1:]))


def _mark(nodes: list[ast.AST] | list[ast.expr]) -> list[str] | None:
    """Return the texts of a mark ``claim`` among some expressions."""
    calls = (node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.claim")
    return next(([ast.literal_eval(word) for word in call.args] for call in calls), None)


def xnats_own_tests() -> tuple[dict[str, list[str]], dict[str, int]]:
    """Return XNAT's own REST tests: by class, and the number of those about each matter that is missing."""
    lines = [line for line in (SANDBOX_TESTS / "xnat_rest_tests.txt").read_text().splitlines() if line[0] != "#"]
    parts = [line.partition(": ") for line in lines]
    known = {name: rest.split() for name, _, rest in parts if name[0] != "-"}
    absent = {
        name[2:]: sum(int(word.partition("=")[2]) for word in rest.split()) for name, _, rest in parts if name[0] == "-"
    }
    return known, absent


def named(sources: tuple[str, ...], known: dict[str, list[str]]) -> set[str]:
    """Return the tests of XNAT among some sources; ``TestRename.*`` stands for all tests of a class."""
    found = set()
    for source in sources:
        name, _, method = source.partition(".")
        if name in known:
            found |= {f"{name}.{each}" for each in (known[name] if method == "*" else [method])}
    return found


def with_claims(page: str) -> str:
    """Return a page with the counts of the claims between its two marks."""
    return CLAIM_MARKS.sub(lambda found: f"{found[1]}{claims_text()}\n{found[2]}", page)


def claims_text() -> str:
    """Return how many claims there are, by area and by source, and what is missing."""
    known, absent = xnats_own_tests()
    areas: dict[str, list[Claim]] = {}
    for claim in claims():
        areas.setdefault(claim.area, []).append(claim)
    lines = ["| area | tests here | tests of XNAT that they name | other sources |", "|---|---|---|---|"]
    for area, found in sorted(areas.items()):
        sources = {source for claim in found for source in claim.sources}
        others = sorted(source for source in sources if source.partition(".")[0] not in known)
        lines.append(f"| {area} | {len(found)} | {len(named(tuple(sources), known))} | {', '.join(others)} |")
    every = [claim for found in areas.values() for claim in found]
    asked = named(tuple(source for claim in every for source in claim.sources), known)
    lines.append(f"| all | {len(every)} | {len(asked)} | |")
    total = sum(map(len, known.values()))
    elsewhere = sum(absent.values())
    lines += [
        "",
        f"XNAT's own suite has {total + elsewhere} tests. {elsewhere} of them are about what is missing here: "
        + ", ".join(f"{name} ({number})" for name, number in sorted(absent.items()))
        + f". Of the other {total}, {len(asked)} are named above. The rest, by class, with how many are not named:",
        "",
        ", ".join(
            f"{name} {left}"
            for name, tests in sorted(known.items())
            if (left := len(tests) - sum(each.startswith(f"{name}.") for each in asked))
        )
        + ".",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
