"""An app of which nothing takes long: what is bright is an organ, and training counts its cases."""

import importlib.util
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import SimpleITK
import torch
from monai.data import MetaTensor
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.epistemic import Epistemic
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.scoring.dice import Dice
from monailabel.tasks.scoring.epistemic_v2 import EpistemicScoring
from monailabel.tasks.scoring.sum import Sum

logger = logging.getLogger(__name__)


class Threshold(InferTask):
    """What is bright; or, where places were pointed at, the voxels of these."""

    def __init__(self, kind=InferType.SEGMENTATION):
        super().__init__(type=kind, labels={"organ": 1}, dimension=3, description="what is bright")

    def is_valid(self):
        return True

    def __call__(self, request):
        image = SimpleITK.ReadImage(request["image"])
        label = SimpleITK.Cast(image > 50, SimpleITK.sitkUInt8)
        if request.get("foreground"):
            label *= 0
            for place in request["foreground"]:
                label.SetPixel([int(index) for index in place], 1)
        if request.get("background_only"):
            label *= 0
        suffix = request.get("result_extension") or ".nii.gz"
        result = tempfile.mkstemp(suffix=suffix)[1]
        SimpleITK.WriteImage(label, result)
        return result, {"label_names": {"organ": 1}, "size": list(image.GetSize())}


class Doubt(Threshold):
    """What MONAI Label's EpistemicScoring asks of a model; how sure it is follows the brightness of the image."""

    output_label_key = "pred"

    def get_path(self):
        return None

    def clear_cache(self):
        pass

    def __call__(self, request):
        voxels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(request["image"]))
        sure = float(voxels.mean()) / 100
        return None, {"pred": MetaTensor(torch.full((1, *voxels.shape), sure))}


class Counting(TrainTask):
    """Writes down which cases there were; of several processes that torchrun started, the first does for all."""

    def __init__(self, report):
        super().__init__("counts the cases")
        self._report = report

    def __call__(self, request, datastore):
        cases = datastore.datalist()
        time.sleep(float(request.get("seconds", 0)))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            cases = self._cases_of_all(cases)
        if cases is not None:
            self._report.write_text(json.dumps(cases))
            logger.info("%d cases", len(cases))
        return {"cases": len(cases or ())}

    def _cases_of_all(self, cases):
        torch.distributed.init_process_group("gloo")
        everyones = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyones, cases)
        is_first = torch.distributed.get_rank() == 0
        torch.distributed.destroy_process_group()
        return everyones if is_first else None


def last_of_radiology():
    """Load the strategy ``last`` of MONAI Label's sample app radiology, which no package holds."""
    file = Path(sys.prefix, "monailabel", "sample-apps", "radiology", "lib", "activelearning", "last.py")
    spec = importlib.util.spec_from_file_location("last", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Last()


class SmallApp(MONAILabelApp):
    """Knows nothing of XNAT."""

    def __init__(self, app_dir, studies, conf):
        self._report = Path(app_dir, "cases.json")
        super().__init__(app_dir=app_dir, studies=studies, conf=conf, name="Small", description="", version="1")

    def init_infers(self):
        return {"threshold": Threshold(), "points": Threshold(InferType.DEEPEDIT)}

    def init_trainers(self):
        return {"threshold": Counting(self._report)}

    def init_strategies(self):
        return {"random": Random(), "first": First(), "last": last_of_radiology(), "epistemic": Epistemic()}

    def init_scoring_methods(self):
        return {"dice": Dice(), "sum": Sum(), "epistemic": EpistemicScoring(Doubt(), max_samples=0)}
