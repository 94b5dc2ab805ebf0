"""Images and labels are written to a folder for other tools, and label files are brought back."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

from monailabel_xnat import XNATDatastore
from monailabel_xnat.cli.main import main
from monailabel_xnat.sandbox import Sandbox
from monailabel_xnat.training.export import common_values

AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])
SHAPE = (4, 5, 3)
SUBJECTS = ("anna", "bert", "cleo", "dora")
# The names and values that two annotators gave to their structures.
LABELS = {"anna": {"liver": 1, "spleen": 2}, "bert": {"spleen": 1, "liver": 2}, "cleo": {"liver": 1, "spleen": 2}}


@pytest.fixture
def archive():
    with Sandbox() as sandbox, requests.Session() as admin:
        admin.auth = (sandbox.username, sandbox.password)
        project = f"{sandbox.url}/data/projects/P"
        admin.put(project).raise_for_status()
        headers = {"Content-Type": "application/octet-stream"}
        for number, subject in enumerate(SUBJECTS):
            session = f"{project}/subjects/{subject}/experiments/{subject}_CT"
            admin.put(f"{project}/subjects/{subject}").raise_for_status()
            admin.put(f"{session}?xsiType=xnat:ctSessionData").raise_for_status()
            admin.put(f"{session}/scans/1", params={"xsiType": "xnat:ctScanData", "modality": "CT"}).raise_for_status()
            image = nibabel.Nifti1Image(np.full(SHAPE, number, np.int16), AFFINE).to_bytes()
            file = f"{session}/scans/1/resources/NIFTI/files/i.nii"
            admin.put(file, data=image, headers=headers).raise_for_status()
        yield sandbox


@pytest.fixture
def datastore(archive, tmp_path):
    given = {"project": "P", "cache_path": tmp_path / "datastore", "environ": {}}
    with XNATDatastore(archive.url, archive.username, archive.password, **given) as opened:
        yield opened


@pytest.fixture
def images(datastore, tmp_path):
    """The ids of the images, by subject. All subjects except the last one have a final label."""
    found = {datastore.scan(image).parent.subject.label: image for image in datastore.list_images()}
    for subject, values in LABELS.items():
        array = np.zeros(SHAPE, np.uint8)
        array[0, 0, 0], array[1] = values["liver"], values["spleen"]
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "label.nii.gz")
        info = {"label_info": [{"name": name, "idx": value} for name, value in values.items()]}
        datastore.save_label(found[subject], str(tmp_path / "label.nii.gz"), "final", info)
    return found


@pytest.fixture
def words(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_XNAT_USERNAME", archive.username)
    monkeypatch.setenv("MONAI_LABEL_XNAT_PASSWORD", archive.password)
    return ["--studies", archive.url, "--cache-path", str(tmp_path / "cache"), "--project", "P"]


def pull(capsys, folder, *words):
    status = main(["pull", str(folder), "--json", *words])
    return status, json.loads(capsys.readouterr().out)


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_a_decathlon_folder_is_read_by_monai_and_means_one_thing(images, words, tmp_path, capsys):
    status, made = pull(capsys, tmp_path / "out", *words)
    assert (status, made["training"]) == (0, 3)
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    values = {name: int(value) for value, name in described["labels"].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of MONAI at its import do not concern us
        from monai.data import load_decathlon_datalist
    cases = load_decathlon_datalist(tmp_path / "out" / "dataset.json", True, "training")
    assert len(cases) == 3
    for case in cases:
        label = voxels(case["label"])
        # One voxel is the liver and 15 are the spleen, for both annotators.
        assert int((label == values["liver"]).sum()) == 1
        assert int((label == values["spleen"]).sum()) == SHAPE[1] * SHAPE[2]
        assert voxels(case["image"]).shape == label.shape
        assert np.allclose(nibabel.load(case["image"]).affine, nibabel.load(case["label"]).affine)


def test_an_nnunet_folder_has_the_names_that_nnunet_demands(images, words, tmp_path, capsys):
    folder = tmp_path / "out"
    pull(capsys, folder, "--layout", "nnunet", "--unlabeled", *words)
    described = json.loads((folder / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "CT"}
    assert sorted(described["labels"].values()) == [0, 1, 2]
    assert described["file_ending"] == ".nii.gz"
    stems = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir())
    assert len(stems) == described["numTraining"] == 3
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == [f"{stem}_0000.nii.gz" for stem in stems]
    (test,) = (folder / "imagesTs").iterdir()
    assert (voxels(test) == SUBJECTS.index("dora")).all()


@pytest.mark.parametrize("name", ["background", "ignore"])
def test_a_structure_whose_name_means_something_else_to_nnunet_is_refused(images, words, tmp_path, capsys, name):
    labels = ["--conf", "xnat_labels", f"liver=1,{name}=2"]
    assert main(["pull", str(tmp_path / "out"), "--layout", "nnunet", *words, *labels]) == 2
    assert f"a structure has the name '{name}'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["pull", str(tmp_path / "out"), *words, *labels]) == 0


def test_an_image_of_several_volumes_is_left_out_for_nnunet(archive, datastore, images, words, tmp_path, capsys):
    """nnU-Net took its volumes for channels, and stopped in the middle."""
    session, moving = images["anna"].split("/")[2], np.zeros((*SHAPE, 4), np.int16)
    folder = f"{archive.url}/data/experiments/{session}/scans/1/resources/NIFTI/files/i.nii"
    content = nibabel.Nifti1Image(moving, AFFINE).to_bytes()
    with requests.Session() as admin:
        admin.auth = (archive.username, archive.password)
        headers = {"Content-Type": "application/octet-stream"}
        admin.put(folder, params={"overwrite": "true"}, data=content, headers=headers).raise_for_status()
    status, made = pull(capsys, tmp_path / "nnunet", "--layout", "nnunet", *words)
    assert (status, made["training"]) == (1, 2)
    assert made["left_out"] == {images["anna"]: "nnU-Net trains on one volume, and this image has 4"}
    assert pull(capsys, tmp_path / "decathlon", *words)[1]["training"] == 3


def test_a_split_that_leaves_one_side_empty_is_said(images, words, tmp_path, capsys):
    assert main(["pull", str(tmp_path / "none"), "--validation", "0.000001", *words]) == 0
    assert "no labelled subject is for validation" in capsys.readouterr().err
    assert main(["pull", str(tmp_path / "all"), "--validation", "1", *words]) == 0
    assert "no labelled subject is for training" in capsys.readouterr().err


def test_a_bids_folder_has_labels_as_derivatives(images, words, tmp_path, capsys):
    folder = tmp_path / "out"
    pull(capsys, folder, "--layout", "bids", *words)
    labels = sorted(path.relative_to(folder / "derivatives" / "monailabel") for path in folder.rglob("*_dseg.nii.gz"))
    assert len(labels) == 3
    for label in labels:
        assert label.name.startswith(f"{label.parts[0]}_{label.parts[1]}_acq-1_desc-final_")
        assert (folder / label.parent / label.name.replace("_desc-final_dseg", "_ct")).is_file()
    derived = json.loads((folder / "derivatives" / "monailabel" / "dataset_description.json").read_text())
    assert derived["DatasetType"] == "derivative"
    assert "index\tname" in (folder / "derivatives" / "monailabel" / "desc-final_dseg.tsv").read_text()


def test_a_subject_is_on_one_side_and_stays_there(images, words, tmp_path, capsys):
    _, first = pull(capsys, tmp_path / "one", "--validation", "0.5", *words)
    _, second = pull(capsys, tmp_path / "two", "--validation", "0.5", "--layout", "nnunet", *words)
    assert (first["training"], first["validation"]) == (second["training"], second["validation"])
    assert first["training"] + first["validation"] == 3
    _, everything = pull(capsys, tmp_path / "three", "--validation", "1", *words)
    assert (everything["training"], everything["validation"]) == (0, 3)


def test_a_repeated_pull_writes_nothing_and_gives_the_same_bytes(images, words, tmp_path, capsys):
    folder = tmp_path / "out"
    pull(capsys, folder, *words)
    before = digests(folder)
    _, again = pull(capsys, folder, *words)
    assert (again["written"], again["kept"]) == (0, 6)
    assert digests(folder) == before
    _, elsewhere = pull(capsys, tmp_path / "other", *words)
    assert elsewhere["written"] == 6
    assert digests(tmp_path / "other") == before


def test_a_pull_that_was_interrupted_is_repeated(images, words, tmp_path, capsys):
    folder = tmp_path / "out"
    pull(capsys, folder, *words)
    whole = digests(folder)
    # The folder as a kill leaves it: the plan is written, some files are there, and one is only a part.
    manifest = json.loads((folder / "monailabel_xnat.json").read_text())
    planned = {**manifest, "complete": False, "files": {place: {} for place in manifest["files"]}}
    (folder / "monailabel_xnat.json").write_text(json.dumps(planned))
    first, second, *_ = sorted((folder / "imagesTr").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:50])
    pull(capsys, folder, *words)
    assert digests(folder) == whole


def test_a_label_that_was_removed_is_gone_from_the_folder(images, datastore, words, tmp_path, capsys):
    folder = tmp_path / "out"
    pull(capsys, folder, *words)
    datastore.remove_label(images["bert"], "final")
    _, again = pull(capsys, folder, *words)
    assert (again["training"], again["removed"]) == (2, 2)
    assert len(list((folder / "labelsTr").iterdir())) == 2


def test_files_of_others_are_never_overwritten(images, words, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "dataset.json").write_text("mine")
    assert main(["pull", str(folder), *words]) == 2
    assert "dataset.json" in capsys.readouterr().err
    assert (folder / "dataset.json").read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["dataset.json"]


def test_a_file_that_somebody_changed_stays_and_is_named(images, datastore, words, tmp_path, capsys):
    folder = tmp_path / "out"
    pull(capsys, folder, *words)
    (changed,) = [path for path in (folder / "labelsTr").iterdir() if path.name.startswith(stem_of(images["bert"]))]
    changed.write_bytes(b"by hand")
    datastore.remove_label(images["bert"], "final")
    _, again = pull(capsys, folder, *words)
    assert again["changed"] == [f"labelsTr/{changed.name}"]
    assert changed.read_bytes() == b"by hand"


def stem_of(image_id):
    from monailabel_xnat import ImageId

    return ImageId.parse(image_id).file_stem


def test_values_that_nobody_named_are_refused_where_they_would_have_to_change():
    from monailabel_xnat import LabelError

    named = [{"value": 1, "name": "liver"}]
    unnamed = [{"value": 1, "name": "Segment_1"}]
    assert common_values([unnamed, unnamed], consecutive=True) == {"Segment_1": 1}
    with pytest.raises(LabelError, match="nobody named"):
        common_values([named, unnamed], consecutive=False)
    assert common_values([[{"value": 3, "name": "liver"}]], consecutive=False) == {"liver": 3}
    assert common_values([[{"value": 3, "name": "liver"}]], consecutive=True) == {"liver": 1}


def test_predictions_go_back_to_their_scans_with_their_names(images, datastore, words, tmp_path, capsys):
    folder = tmp_path / "out"
    pull(capsys, folder, "--layout", "nnunet", "--unlabeled", *words)
    values = json.loads((folder / "dataset.json").read_text())["labels"]
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    array = np.zeros(SHAPE, np.uint8)
    array[2] = values["spleen"]
    stem = stem_of(images["dora"])
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), predictions / f"{stem}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), predictions / "stranger.nii.gz")
    (predictions / "._stranger.nii.gz").write_bytes(b"macOS")
    push = ["push", str(predictions), "--manifest", str(folder), "--json", *words]

    assert main([*push, "--dry-run"]) == 1
    shown = {Path(row["file"]).name: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert shown == {f"{stem}.nii.gz": "new", "stranger.nii.gz": "belongs to no image: see --manifest"}
    datastore.refresh()
    assert datastore.get_label_by_image_id(images["dora"], "original") == ""

    assert main([*push, "--yes"]) == 1
    capsys.readouterr()
    datastore.refresh()
    assert (voxels(datastore.get_label_uri(images["dora"], "original")) == array).all()
    (version,) = datastore.label_history(images["dora"], "original")
    assert [(segment["name"], segment["value"]) for segment in version["segments"]] == [("spleen", values["spleen"])]

    (predictions / "stranger.nii.gz").unlink()
    assert main([*push, "--yes"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["state"] == "there already"
    datastore.refresh()
    assert len(datastore.label_history(images["dora"], "original")) == 1


@pytest.fixture
def drawn(images, tmp_path):
    """A folder with one label file that is not in XNAT."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    file = folder / f"{stem_of(images['dora'])}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), file)
    return folder


def test_a_dry_run_lists_each_file_once(drawn, words, capsys):
    assert main(["push", str(drawn), "--dry-run", *words]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count(".nii.gz") == 1
    assert said.out.splitlines()[-1] == "1 labels are new; nothing was saved."


def test_a_dry_run_finds_a_label_that_would_be_refused(drawn, datastore, images, words, capsys):
    """It said "new" to any file with the right name."""
    (file,) = drawn.iterdir()
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), np.diag([3, 3, 9, 1])), file)
    assert main(["push", str(drawn), "--dry-run", *words]) == 1
    said = capsys.readouterr()
    assert "does not lie on the grid of its image" in said.err
    assert said.out.splitlines()[-1] == "0 labels are new; nothing was saved."
    datastore.refresh()
    assert datastore.get_label_by_image_id(images["dora"], "original") == ""


def test_nothing_is_saved_where_nobody_says_yes(drawn, datastore, images, words, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert main(["push", str(drawn), *words]) == 0
    assert "nothing was saved" in capsys.readouterr().out
    # A job without a terminal ended without a word.
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["push", str(drawn), *words]) == 2
    assert "give --yes" in capsys.readouterr().err
    datastore.refresh()
    assert datastore.get_label_by_image_id(images["dora"], "original") == ""


def test_a_label_of_another_grid_is_refused_and_the_others_are_saved(images, datastore, words, tmp_path, capsys):
    folder = tmp_path / "labels"
    folder.mkdir()
    good, bad = stem_of(images["anna"]), stem_of(images["bert"])
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), folder / f"{good}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 9, 9), np.uint8), AFFINE), folder / f"{bad}.nii.gz")
    assert main(["push", str(folder), "--yes", "--json", *words]) == 1
    states = {Path(row["file"]).name: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states[f"{good}.nii.gz"].startswith("saved as ")
    assert states[f"{bad}.nii.gz"].startswith("failed: ")


def test_a_manifest_of_another_server_is_refused(images, words, tmp_path, capsys):
    folder = tmp_path / "out"
    pull(capsys, folder, *words)
    manifest = json.loads((folder / "monailabel_xnat.json").read_text())
    (folder / "monailabel_xnat.json").write_text(json.dumps({**manifest, "server": "https://other.example.org"}))
    assert main(["push", str(folder / "labelsTr"), "--yes", *words]) == 2
    assert "other.example.org" in capsys.readouterr().err
