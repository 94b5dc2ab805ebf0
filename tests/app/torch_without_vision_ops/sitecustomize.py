"""Lets torchvision be imported beside a torch that is built for CPUs, in the programs that the tests start.

torchvision from PyPI is built for CUDA: beside a CPU build of torch its operators do not load, and importing it ends
with "operator torchvision::nms does not exist". MONAI Label's sample apps import torchvision, and use none of these.
"""

import contextlib
import importlib.abc
import sys


class _DefineOperators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                with contextlib.suppress(RuntimeError):  # this build of torchvision has its operators
                    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(library)


_kept = []
sys.meta_path.insert(0, _DefineOperators())
