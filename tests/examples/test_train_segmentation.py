"""The training script runs from labels in XNAT to drafts in XNAT, also if it is killed or runs as several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import train_site

from monailabel_xnat import XNATDatastore
from monailabel_xnat.sandbox import Sandbox

SCRIPT = Path(__file__).parents[2] / "examples" / "train_segmentation.py"
EPOCHS = 12
OPTIONS = ["--project", train_site.PROJECT, "--labels", "ball=1", "--epochs", str(EPOCHS), "--learning-rate", "5e-3"]
OPTIONS += ["--spacing", "2", "2", "2", "--patch", "16", "16", "16"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Sandbox() as sandbox:
        folder = tmp_path_factory.mktemp("site")
        sandbox.truths = train_site.fill(sandbox, folder)
        sandbox.variables = train_site.environment(sandbox, folder / "cache")
        yield sandbox


def run(site, output, *options, launcher=()):
    command = [sys.executable, *launcher, str(SCRIPT), *OPTIONS, "--output", str(output), *options]
    done = subprocess.run(command, env=site.variables, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def trained(site, tmp_path_factory):
    """What a run printed, and its folder."""
    output = tmp_path_factory.mktemp("runs") / "balls"
    return run(site, output), output


def drafts(site, folder):
    """Return the drafts in XNAT as images of nibabel, and their infos, by image id."""
    login = {"username": site.username, "password": site.password, "cache_path": folder, "environ": {}}
    with XNATDatastore(site.url, project=train_site.PROJECT, **login) as datastore:
        labels = {image: datastore.get_label_uri(image, "original") for image in datastore.list_images()}
        infos = {image: datastore.get_label_info(image, "original") for image in labels}
        versions = {image: len(datastore.label_history(image, "original")) for image, path in labels.items() if path}
        assert set(versions.values()) <= {1}
        return {image: (nibabel.load(path), infos[image]) for image, path in labels.items() if path}


def dice(label, truth):
    found = np.asarray(label.dataobj)
    return 2 * np.sum(found * truth) / (found.sum() + truth.sum())


def test_a_network_is_trained_and_validated(trained):
    lines, output = trained
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line.split("/")[0] for line in epochs] == [f"epoch {number}" for number in range(1, EPOCHS + 1)]
    assert float(epochs[-1].rpartition(" ")[2]) > 0.7
    assert list(output.glob("events.out.tfevents.*"))
    assert output.stat().st_mode & 0o077 == 0


def test_no_patient_is_on_both_sides_of_the_split(trained):
    split = json.loads((trained[1] / "split.json").read_text())
    images = [*split["training"], *split["validation"]]
    assert len(images) == len(set(images)) == len(train_site.LABELLED)
    subjects = [{image.split("/")[1] for image in split[side]} for side in ("training", "validation")]
    assert all(subjects)
    assert subjects[0].isdisjoint(subjects[1])


def test_a_draft_lies_on_the_grid_of_its_image(site, trained, tmp_path):
    split = (trained[1] / "split.json").read_text()
    found = {image: draft for image, draft in drafts(site, tmp_path).items() if image not in split}
    ((image, (label, info)),) = found.items()
    assert label.shape == train_site.SHAPE
    np.testing.assert_allclose(label.affine, train_site.AFFINE, atol=1e-5)
    assert dice(label, site.truths[image]) > 0.7
    assert info["model"] == "balls"
    assert info["params"]["label_names"] == {"ball": 1}


def test_a_killed_run_goes_on_as_if_nothing_had_happened(site, trained, tmp_path):
    output = tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), *OPTIONS, "--output", str(output), "--predict", "nothing"]
    with subprocess.Popen(command, env=site.variables, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 1/"):
                process.kill()
    assert process.returncode == -9
    lines = run(site, output, "--predict", "validation")
    assert not next(line for line in lines if "to train on" in line).endswith("after epoch 0")
    # The last epoch: its loss, its Dice, and the best Dice of all.
    last = [[line for line in printed if line.startswith("epoch")][-1] for printed in (lines, trained[0])]
    assert last[0] == last[1]
    assert (output / "split.json").read_text() == (trained[1] / "split.json").read_text()
    validated = json.loads((output / "split.json").read_text())["validation"]
    assert set(validated) <= set(drafts(site, tmp_path / "cache"))


def test_two_processes_train_on_one_listing(site, tmp_path):
    site.requests.clear()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    lines = run(site, tmp_path / "both", "--epochs", "2", "--predict", "nothing", launcher=launcher)
    assert [line.split(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    # Only one of the two processes has logged in, and it logs out again.
    logouts = [request for request in site.requests if (request.method, request.path) == ("DELETE", "/data/JSESSION")]
    assert len(logouts) == 1
