"""Print requirements that `make matrix` installs, read from setup.cfg so that nothing is written down twice.

``light``: what the package and its tests need, without MONAI Label, MONAI and so without torch.
``lowest``: constraints that pin each requirement to the lowest version that setup.cfg allows.
"""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"
# MONAI Label is installed without what it requires; its interfaces need no more than this.
HEAVY = ("monailabel", "monai")
INTERFACES = ("pydantic-settings>=2.2.1",)


def requirements() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(SETUP, encoding="utf-8")
    lists = setup["options"]["install_requires"], setup["options.extras_require"]["test"]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0]


def light() -> list[str]:
    return [line for line in requirements() if name_of(line) not in HEAVY] + list(INTERFACES)


def lowest() -> list[str]:
    floors = [(name_of(line), re.search(r">=\s*([^,;\s]+)", line)) for line in requirements()]
    without = [name for name, floor in floors if floor is None]
    if without:
        sys.exit(f"setup.cfg names no lowest version of {', '.join(without)}")
    return [f"{name}=={floor.group(1)}" for name, floor in floors if floor]


if __name__ == "__main__":
    print("\n".join({"light": light, "lowest": lowest}[sys.argv[1]]()))
