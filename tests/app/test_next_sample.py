"""An app and a scan that is not a volume: next samples, batch inference and the planner of MONAI Label."""

from __future__ import annotations

import random
import sys
import warnings
from types import ModuleType

import pytest

from monailabel_xnat import XNATAppMixin
from monailabel_xnat.errors import ImageConversionError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch, about itself
    from monailabel.interfaces.app import MONAILabelApp
    from monailabel.interfaces.tasks.batch_infer import BatchInferTask
    from monailabel.tasks.activelearning.first import First
    from monailabel.tasks.activelearning.random import Random

    from monailabel_xnat.app.volumes import without_others


class HeuristicPlanner:
    """Uses a datastore as MONAI Label's planner does, which itself reads the images with MONAI."""

    def __init__(self, max_samples=10):
        self.max_samples = max_samples
        self.read = None

    def run(self, datastore):
        images = datastore.list_images()
        chosen = images if len(images) < self.max_samples else random.sample(images, self.max_samples)
        self.read = [datastore.get_image_uri(image) for image in chosen]


class App(XNATAppMixin, MONAILabelApp):
    """The parts of an app that choose images."""

    def __init__(self, datastore, planner=None):
        self.studies, self.conf, self._made = "http://xnat", {"datastore": "xnat"}, datastore
        if planner:
            self.planner = planner
        self._auto_update_scoring = False
        self._datastore = self.init_datastore()
        if planner:
            self.planner.run(self._datastore)
        self._strategies = {"first": First(), "random": Random(), "always": self.always}
        self._batch_infer = self.init_batch_infer()
        self.chosen = ""

    def init_remote_datastore(self):
        return self._made

    def always(self, request, datastore):
        return {"id": self.chosen}

    def init_batch_infer(self):
        return super().init_batch_infer()


def infer(app):
    """An inference that only reads its image, as the app's own does at its start."""
    return lambda request, datastore=None: {
        "file": None,
        "params": {"path": app.datastore().get_image_uri(request["image"])},
    }


@pytest.fixture
def datastore(xnat_sandbox, demo_dicom, open_xnat_datastore):
    for case in demo_dicom.cases[:2]:
        xnat_sandbox.import_dicom(case.dicom.parent, "P")
    return open_xnat_datastore(project="P", prefetch=0)


def localizer(datastore):
    return next(image for image in datastore.list_images() if image.endswith("/1"))


@pytest.mark.parametrize("strategy", ["first", "random"])
def test_a_next_sample_is_never_a_localizer_and_never_an_error(datastore, strategy):
    app = App(datastore)
    for _ in range(8):
        sample = app.next_sample({"strategy": strategy})
        assert sample["path"]
        assert sample["id"] != localizer(datastore)


def test_a_strategy_that_insists_ends_after_ten_times(datastore):
    app = App(datastore)
    app.chosen = localizer(datastore)
    with pytest.raises(ImageConversionError, match="localizer"):
        app.next_sample({"strategy": "always"})


def test_if_no_volume_is_left_there_is_no_next_sample(xnat_sandbox, demo_dicom, open_xnat_datastore):
    xnat_sandbox.import_dicom(demo_dicom.cases[0].dicom.parent, "P")
    app = App(open_xnat_datastore(project="P", series_description="*localizer*"))
    assert app.next_sample({"strategy": "first"}) == {}


def test_a_batch_inference_with_one_worker_goes_on(datastore, monkeypatch):
    app = App(datastore)
    monkeypatch.setattr(MONAILabelApp, "infer", lambda self, request, datastore=None: infer(self)(request))
    request = {"model": "m", "max_workers": 1, "device": "cpu", "multi_gpu": False}
    result = app.batch_infer(request)
    assert result[localizer(datastore)] == {}
    assert sum(bool(found) for found in result.values()) == 2
    assert localizer(datastore) not in app.batch_infer(request)  # known now
    assert app.batch_infer({**request, "images": [localizer(datastore)]}) == {localizer(datastore): {}}
    with pytest.raises(ImageConversionError):
        app.infer({"model": "m", "image": localizer(datastore)})


def test_a_planner_reads_only_what_is_a_volume(datastore, monkeypatch):
    module = ModuleType("monailabel.utils.others.planner")
    module.HeuristicPlanner = HeuristicPlanner
    monkeypatch.setitem(sys.modules, module.__name__, module)
    app = App(datastore, HeuristicPlanner())
    assert len(app.planner.read) == 2
    assert len(App(datastore, HeuristicPlanner(max_samples=1)).planner.read) == 1
    assert datastore.status()["no_volume"].keys() <= {localizer(datastore)}


def test_the_app_keeps_what_it_would_have_had_with_another_datastore():
    assert without_others(BatchInferTask()).get_images({"images": ["a"]}, None) == ["a"]
