"""Segment liver, spleen and kidneys in abdominal CT: a small MONAI Label app that lives on XNAT.

Start it on the scans of an XNAT project (credentials come from the environment or from ``~/.netrc``)::

    monailabel start_server --app examples/organs_app --studies https://xnat.example.org --conf datastore xnat

or, with the same code, on a folder of NIfTI images::

    monailabel start_server --app examples/organs_app --studies path/to/images

The one line that makes an app work with XNAT is ``XNATAppMixin`` in front of ``MONAILabelApp``.
"""

from __future__ import annotations

from pathlib import Path

from lib.infer import OrganInference
from lib.network import LABELS, build_network
from lib.train import OrganTraining
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from monailabel_xnat import XNATAppMixin


class OrgansApp(XNATAppMixin, MONAILabelApp):
    """One model, ``organs``: it segments, and training replaces it by what the final labels teach."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.model_dir = Path(app_dir, "model")
        self.model_file = self.model_dir / "organs.pt"
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="Organs",
            description="Liver, spleen and kidneys in CT, learned from the labels in the archive",
            labels=list(LABELS),  # MONAI Label's OHIF panel shows a list only
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Name the models that clients can run."""
        return {"organs": OrganInference(self.model_file, build_network())}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Name the models that clients can train; what is trained here is what ``init_infers`` runs."""
        return {"organs": OrganTraining(self.model_dir, self.model_file, build_network())}

    def init_strategies(self) -> dict[str, Strategy]:
        """Name the ways to choose the next image to label."""
        return {"random": Random(), "first": First()}
