"""Damage a file again and again, read it with little memory, and print each outcome that is not of a type of ours.

Usage: fuzz_driver.py KIND SEED COUNT FOLDER. The folder holds the whole file, and ``grid.json``, that of its image.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np

from monailabel_xnat.convert import Grid, dicom_to_nifti, read_aim, read_label, read_rtstruct, read_seg
from monailabel_xnat.errors import XNATDatastoreError

_MEMORY = 1 << 30
_SECONDS = 240
_NUMBERS = (
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\x7f",
    b"\0\0\xc0\x7f",
    b"\1\0",
    b"1e300",
    b"-1",
    b"99999999",
)


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Change some bytes, cut the end off, or repeat a part."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed))
        kind = chance.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            number = chance.choice(_NUMBERS)
            changed[at : at + len(number)] = number
        elif kind == 2:
            changed[at : at + chance.randint(1, 40)] = b""
        elif kind == 3:
            changed[at:at] = changed[at : at + chance.randint(1, 40)]
        else:
            del changed[max(1, at) :]
    return bytes(changed)


def main(kind: str, seed: str, count: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    stated = json.loads((folder / "grid.json").read_text())
    grid = Grid(tuple(stated["shape"]), np.array(stated["affine"]), lambda: {("1.2.3", 1): 0})
    content = (folder / f"whole{kind}").read_bytes()
    path, out = folder / f"damaged{kind}", folder / "out.nii"
    read = {
        ".img.dcm": lambda: dicom_to_nifti(path, out),
        ".seg.dcm": lambda: read_seg(path, grid),
        ".rt.dcm": lambda: read_rtstruct(path, grid),
        ".xml": lambda: read_aim(path, grid),
    }.get(kind, lambda: read_label(path, grid))
    path.write_bytes(content)
    read()  # all modules are loaded now
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    chance = random.Random(int(seed))
    for number in range(int(count)):
        path.write_bytes(damaged(content, chance))
        try:
            read()
        except XNATDatastoreError:
            pass
        except BaseException:  # noqa: BLE001 - whatever it is, it is what is looked for
            sys.stdout.write(f"damage {number}: {traceback.format_exc()}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
