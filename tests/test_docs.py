"""Settings are the same everywhere: in the README's table, in the code, and in the constructor's signature."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import monailabel_xnat
from monailabel_xnat import XNATDatastore, errors
from monailabel_xnat.config import Settings
from monailabel_xnat.facade.opening import SettingArguments
from monailabel_xnat.values import Secret

README = Path(__file__).parents[1] / "README.md"


def shown(default) -> str:
    if isinstance(default, tuple):
        default = ",".join(default)
    if isinstance(default, bool):
        default = str(default).lower()
    if default in (None, "") or isinstance(default, Secret):
        return ""
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def settings_table() -> str:
    rows = [
        f"| `{field.name}` | {shown(field.default)} | {field.metadata['meaning']} |"
        for field in dataclasses.fields(Settings)
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def test_the_readme_lists_every_setting_with_its_default_and_meaning():
    text = README.read_text(encoding="utf-8")
    section = re.search(r"<!-- settings:.*?-->\n(.*?)<!-- end of settings -->", text, re.DOTALL)
    assert section is not None
    assert section.group(1).strip() == settings_table()


def test_every_file_that_the_readme_points_to_exists():
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (README.parent / target).exists()] == []


def test_every_path_that_contributing_names_exists():
    root = README.parent
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = [path for path in re.findall(r"`([\w./-]+(?:/|\.py|\.md|\.cfg))`", text) if not path.startswith("../")]
    assert "datastore.py" in {Path(path).name for path in paths}
    assert [path for path in paths if not ((root / path).exists() or (root / "monailabel_xnat" / path).exists())] == []


def test_the_constructor_spells_every_setting_out():
    own = set(inspect.signature(XNATDatastore).parameters) - {"settings", "conf", "environ", "api_url", "connection"}
    spelt = own | set(SettingArguments.__annotations__) | {"server"}
    assert spelt == {field.name for field in dataclasses.fields(Settings)}
    assert own.isdisjoint(SettingArguments.__annotations__)


def test_all_that_is_documented_or_returned_can_be_imported_from_the_package():
    texts = [path.read_text(encoding="utf-8") for path in (README, *(README.parent / "docs").glob("*.md"))]
    names = re.findall(r"from monailabel_xnat import ([\w, ]+)", "\n".join(texts))
    assert names
    documented = {name.strip() for line in names for name in line.split(",")}
    ours = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    returned = {kind.__name__ for kind in ours if issubclass(kind, errors.XNATDatastoreError)}
    returned |= {"TrainingSet", "PrefetchReport", "Progress"}
    assert documented | returned <= set(monailabel_xnat.__all__)
    assert all(getattr(monailabel_xnat, name) is not None for name in monailabel_xnat.__all__)
