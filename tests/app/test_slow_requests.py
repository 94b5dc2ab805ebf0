"""A slow request does not delay the quick ones, on a real server whose image takes long to come from XNAT."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
import requests

sys.path.insert(0, str(Path(__file__).parent))

from label_server import environment, label_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

APP = """
from monailabel.interfaces.app import MONAILabelApp
from monailabel.tasks.activelearning.first import First


class App(MONAILabelApp):
    def __init__(self, app_dir, studies, conf):
        super().__init__(app_dir, studies, conf, name="slow", description="")

    def init_strategies(self):
        return {"first": First()}
"""
SLOW = 12.0


def test_info_answers_while_an_image_is_fetched_and_downloads_it_once(xnat_sandbox, demo_dicom, tmp_path):
    xnat_sandbox.import_dicom(demo_dicom.cases[0].dicom, "DEMO")
    app = tmp_path / "app"
    app.mkdir()
    (app / "main.py").write_text(APP)
    conf = {"xnat_project": "DEMO", "xnat_series_description": "!*localizer*", "xnat_prefetch": "0"}
    with label_server(app, xnat_sandbox.url, conf, environment(xnat_sandbox, tmp_path)) as url:
        xnat_sandbox.faults.add("/resources/DICOM/files", delay=SLOW, times=1)
        answers = []

        def next_sample():
            answers.append((requests.post(f"{url}/activelearning/first", json={}, timeout=300), time.monotonic()))

        annotators = [threading.Thread(target=next_sample) for _ in range(2)]
        for annotator in annotators:
            annotator.start()
        time.sleep(1)
        asked = time.monotonic()
        info = requests.get(f"{url}/info/", timeout=300)
        took, is_before = time.monotonic() - asked, not answers
        for annotator in annotators:
            annotator.join()
        image = answers[0][0].json()["id"]
        file = requests.get(f"{url}/datastore/image", params={"image": image}, timeout=300)
    assert info.json()["datastore"]["total"] == 1
    assert is_before, f"/info/ took {took:.1f} s"
    assert [answer.status_code for answer, _ in answers] == [200, 200]
    assert len(file.content) > 1000
