"""How large the package is, and how many modules and functions a cold fetch and a save pass.

    python benchmarks/walks.py

Counts the modules and functions of the package, with and without the sandbox. Then follows two calls on the embedded
sandbox, in all threads of this process, and counts the modules and functions of the package (the sandbox left out) that
each passes: `get_image_uri` of an image that was never fetched, and `save_label` until its copy for viewers is in XNAT.
With ``--list`` each function is named, in the order in which it was first entered.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import nibabel
import numpy as np

import monailabel_xnat
from monailabel_xnat import XNATDatastore
from monailabel_xnat.sandbox import Sandbox
from monailabel_xnat.sandbox.demo import write_demo

PACKAGE = Path(monailabel_xnat.__file__).parent


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def count(title: str, files: list[Path]) -> None:
    texts = [file.read_text(encoding="utf-8") for file in files]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    bodies = [body_lines(node) for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lines = sum(len(text.splitlines()) for text in texts)
    median = statistics.median(bodies)
    print(f"{title}: {len(files)} modules, {len(bodies)} functions, median body {median:g} lines, {lines} lines")


class Walk:
    """The functions of the package that are entered while it is open, each once, in order."""

    def __init__(self) -> None:
        self.functions: dict[tuple[str, str, int], None] = {}

    def _note(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(PACKAGE)):
            return
        module = Path(code.co_filename).relative_to(PACKAGE).as_posix()
        # Comprehensions and bodies of modules and classes are no functions that a reader walks through.
        if not module.startswith("sandbox/") and not code.co_name.startswith("<") and code.co_flags & 0x0002:
            self.functions.setdefault((module, code.co_name, code.co_firstlineno))

    def __enter__(self) -> Walk:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]

    def report(self, title: str, is_listed: bool) -> None:
        modules = dict.fromkeys(module for module, _, _ in self.functions)
        print(f"{title}: {len(modules)} modules, {len(self.functions)} functions")
        if is_listed:
            print("".join(f"    {module}:{line} {name}\n" for module, name, line in self.functions))


def walked(call: Callable[[], Any]) -> Walk:
    with Walk() as walk:
        call()
    return walk


def main() -> None:
    is_listed = "--list" in sys.argv[1:]
    files = sorted(PACKAGE.rglob("*.py"))
    count("with the sandbox", files)
    count("without it", [file for file in files if "sandbox" not in file.relative_to(PACKAGE).parts])
    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        demo = write_demo(Path(folder, "demo"))
        sandbox.import_dicom(demo.dicom, "P")
        settings = {"username": sandbox.username, "password": sandbox.password, "environ": {}}
        # No localizers, which are no volumes; and nothing is fetched ahead, so that the walk of the fetch is whole.
        settings |= {"series_description": "!*localizer*", "prefetch": 0}
        datastore = XNATDatastore(sandbox.url, cache_path=Path(folder, "cache"), **settings)
        image = datastore.list_images()[0]
        fetch = walked(lambda: datastore.get_image_uri(image))
        voxels = nibabel.load(datastore.get_image_uri(image))
        label = Path(folder, "label.nii.gz")
        nibabel.save(nibabel.Nifti1Image((np.asarray(voxels.dataobj) > 0).astype(np.uint8), voxels.affine), label)

        def save() -> None:
            datastore.save_label(image, str(label), "final", {})
            datastore.close()  # waits for the copy for viewers

        saved = walked(save)
        fetch.report("a cold get_image_uri", is_listed)
        saved.report("save_label with its copy for viewers", is_listed)


if __name__ == "__main__":
    main()
