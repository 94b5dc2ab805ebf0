"""Images of scans are fetched once, as they are in XNAT, and are found again without a request."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import threading
import time
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.uid import generate_uid
from scan_bench import fetch, make_scan, make_series

from monailabel_xnat.catalog.scan import Resource
from monailabel_xnat.client.session import quoted
from monailabel_xnat.convert import dicom_to_nifti
from monailabel_xnat.errors import CacheError, ImageError, NoImageError, ServerError, TransferError


def nifti(values, path):
    nibabel.save(nibabel.Nifti1Image(np.asarray(values), np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path.read_bytes()


def itk(values, path, **options):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.asarray(values)), str(path), **options)
    return path.read_bytes()


VOXELS = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


def test_dicom_becomes_the_nifti_that_the_converter_makes(bench, series, tmp_path):
    path = bench.images().path(bench.put("DICOM", series))
    expected = dicom_to_nifti(tmp_path / "series", tmp_path / "expected.nii").path
    assert path.read_bytes() == expected.read_bytes()


def test_the_name_is_unique_and_has_no_dot_but_in_its_ending(bench, series, tmp_path):
    images = bench.images()
    first = images.path(bench.put("DICOM", series))
    second = images.path(bench.put("DICOM", series, number="2"))
    changed = images.path(bench.put("DICOM", make_series(tmp_path / "other", seed=1, slices=5)))
    names = {first.name, second.name, changed.name}
    assert len(names) == 3
    assert all(name.count(".") == 1 and name.endswith(".nii") for name in names)
    assert first.name.startswith("P_XNAT_S00001_XNAT_E00001_1_")


def test_of_several_series_in_a_scan_xnat_s_own_is_the_image(bench, series, tmp_path):
    other = make_series(tmp_path / "other", seed=1, slices=6)
    scan = bench.put("DICOM", {**series, **{f"other/{name}": content for name, content in other.items()}})
    uid = str(pydicom.dcmread(io.BytesIO(next(iter(other.values())))).SeriesInstanceUID)
    assert bench.images().grid(scan._replace(series_uid=uid)).shape == (10, 12, 6)
    second = scan._replace(image_id=dataclasses.replace(scan.image_id, scan="2"), series_uid="1.2.3")
    bench.archive.resources[second.path + "/resources/DICOM"] = bench.archive.resources[scan.path + "/resources/DICOM"]
    with pytest.raises(ImageError, match="2 series lie together"):
        bench.images().path(second)


def test_files_of_one_series_are_the_image_whatever_uid_xnat_remembers(bench, series):
    scan = bench.put("DICOM", series)._replace(series_uid="1.2.3")
    assert bench.images().grid(scan).shape == (10, 12, 4)


def test_compressed_if_asked_for(bench, series):
    path = bench.images(compress=True).path(bench.put("DICOM", series))
    assert path.name.endswith(".nii.gz")
    assert path.name.count(".") == 2
    plain = bench.images(compress=False).path(bench.put("DICOM", series))
    assert np.array_equal(nibabel.load(path).get_fdata(), nibabel.load(plain).get_fdata())


def test_a_warm_hit_makes_no_request_and_takes_no_time(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    path = images.path(scan)
    asked = list(bench.archive.asked)
    started = time.perf_counter()
    assert {images.path(scan) for _ in range(1000)} == {path}
    assert time.perf_counter() - started < 0.5
    assert bench.archive.asked == asked


def test_another_process_makes_no_request_either(bench, series):
    scan = bench.put("DICOM", series)
    path = bench.images().path(scan)
    asked = list(bench.archive.asked)
    other = bench.images()
    assert (other.path(scan), other.local(scan)) == (path, path)
    assert bench.archive.asked == asked


def test_local_and_checksum_know_what_is_here_and_ask_nobody(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    assert images.local(scan) is images.checksum(scan) is None
    assert images.facts(scan)["name"] == f"{scan.image_id.file_stem}.nii"
    assert bench.archive.asked == []
    path = images.path(scan)
    assert images.local(scan) == path
    assert images.facts(scan)["name"] == path.name
    assert images.checksum(scan) == f"SHA256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_changed_resource_is_fetched_again_under_another_name(bench, series, tmp_path):
    images = bench.images()
    old = images.path(bench.put("DICOM", series))
    scan = bench.put("DICOM", make_series(tmp_path / "other", seed=1, slices=6))
    new = images.path(scan)
    assert new != old
    assert images.grid(scan).shape == (10, 12, 6)
    assert old.exists(), "somebody may still work with it"


def test_other_numbers_in_the_listing_alone_fetch_nothing(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    path = images.path(scan)
    downloads = bench.downloads()
    recounted = scan._replace(resources=(Resource("DICOM", 99, 99), Resource("SNAPSHOTS", 2, 10)))
    assert images.path(recounted) == path
    assert bench.downloads() == downloads
    asked = list(bench.archive.asked)
    assert images.path(recounted) == bench.images().path(recounted) == path
    assert bench.archive.asked == asked


def test_where_xnat_counts_nothing_the_list_is_compared_once_in_a_while(bench, series, tmp_path):
    images, scan = bench.images(), bench.put("DICOM", series, counted=False)
    path = images.path(scan)
    asked = list(bench.archive.asked)
    assert images.path(scan) == path
    assert bench.archive.asked == asked
    later = bench.images()
    assert later.path(scan) == path
    assert len(bench.archive.asked) == len(asked) + 1
    bench.put("DICOM", make_series(tmp_path / "other", seed=1), counted=False)
    assert bench.images().path(scan) != path


def test_where_xnat_counts_no_files_and_is_away_the_cached_image_is_served(bench, series):
    scan = bench.put("DICOM", series, counted=False)
    path = bench.images().path(scan)
    bench.archive.answers[scan.path + "/resources/DICOM/files"] = lambda: ("text/plain", b"broken", -1, 500)
    assert bench.images().path(scan) == path


def test_threads_that_want_the_same_image_cause_one_download(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    start, paths = threading.Barrier(8), []

    def want():
        start.wait()
        paths.append(images.path(scan))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(paths), len(set(paths)), bench.downloads()) == (8, 1, 1)


def test_processes_that_want_the_same_image_cause_one_download(bench, series):
    context = multiprocessing.get_context("spawn")
    scan, start, paths = bench.put("DICOM", series), context.Barrier(2), context.Queue()
    bench.images()
    arguments = (bench.opened[0][0].settings, scan, start, paths)
    workers = [context.Process(target=fetch, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = {paths.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    assert (len(found), bench.downloads()) == (1, 1)


def test_dicom_folder_holds_the_files_of_the_series(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    folder = images.dicom_folder(scan)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == series
    downloads = bench.downloads()
    assert images.path(scan).with_suffix("") == folder, "beside each other, as in MONAI Label's DICOMweb datastore"
    assert bench.downloads() == downloads, "converted from the files that are here"


def test_image_format_dicom_gives_the_folder_and_opens_a_zip(bench, series):
    images, scan = bench.images(image_format="dicom"), bench.put("DICOM", series)
    assert images.path(scan) == images.dicom_folder(scan)
    assert images.checksum(scan) is None
    with images.open(scan) as stream, zipfile.ZipFile(io.BytesIO(stream.read())) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == series
    assert images.grid(scan).shape == (10, 12, 4)


def test_open_gives_the_bytes_of_the_file(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    with images.open(scan) as stream:
        assert stream.read() == images.path(scan).read_bytes()


def test_discard_makes_the_next_use_fetch_again(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    path = images.path(scan)
    images.discard(scan)
    assert not path.exists()
    assert images.local(scan) is None
    assert images.path(scan) == path
    assert bench.downloads() == 2


def test_what_another_process_evicted_is_fetched_again(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    path = images.path(scan)
    other = bench.images()
    other.discard(scan)
    assert images.path(scan) == path
    assert path.exists()


@pytest.mark.parametrize(
    ("label", "name"), [("NIFTI", "brain T1.nii.gz"), ("NIFTI", "sub/brain.nii"), ("nifti", "b.NII.GZ")]
)
def test_nifti_is_used_as_it_is(bench, tmp_path, label, name):
    content = nifti(VOXELS, tmp_path / f"x{'.nii.gz' if name.lower().endswith('gz') else '.nii'}")
    scan = bench.put(label, {name: content, "readme.txt": b"words", "brain.json": b"{}"})
    images = bench.images()
    path = images.path(scan)
    assert path.read_bytes() == content
    assert path.name.endswith(".nii.gz" if name.lower().endswith("gz") else ".nii")
    assert images.grid(scan).shape == (2, 3, 4)
    with pytest.raises(NoImageError, match="not stored as DICOM"):
        images.dicom_folder(scan)


@pytest.mark.parametrize(
    ("label", "ending"), [("NRRD", ".nrrd"), ("MHA", ".mha"), ("PNG", ".png"), ("JPEG", ".jpg"), ("TIFF", ".tif")]
)
def test_other_formats_are_used_as_they_are(bench, tmp_path, label, ending):
    values = VOXELS.astype(np.uint8)[0] if label in ("PNG", "JPEG", "TIFF") else VOXELS
    content = itk(values, tmp_path / f"image{ending}")
    path = bench.images().path(bench.put(label, {f"image{ending}": content}))
    assert path.read_bytes() == content
    assert path.name.endswith(ending)


@pytest.mark.parametrize(("label", "name", "joined"), [("MHD", "i.mhd", ".mha"), ("NRRD", "i.nhdr", ".nrrd")])
def test_header_and_voxels_are_put_into_one_file(bench, tmp_path, label, name, joined):
    (tmp_path / "split").mkdir()
    itk(VOXELS, tmp_path / "split" / name)
    files = {path.name: path.read_bytes() for path in (tmp_path / "split").iterdir()}
    assert len(files) == 2
    path = bench.images().path(bench.put(label, files))
    assert path.name.endswith(joined)
    assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))), VOXELS)


@pytest.mark.parametrize("target", ["/etc/hostname", "../../secret.raw", "other.raw", "LIST", "slice%03d.raw 1 3 1"])
def test_a_header_that_points_elsewhere_is_refused(bench, target):
    header = f"ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = {target}\n"
    images = bench.images()
    for label, name in [("MHD", "i.mhd"), ("MHA", "i.mha")]:
        with pytest.raises(ImageError, match="no file beside it"):
            images.path(bench.put(label, {name: header.encode(), "i.raw": bytes(4)}))
    nrrd = f"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 2 2\nencoding: raw\ndata file: {target}\n"
    for name in ("i.nrrd", "i.nhdr"):
        with pytest.raises(ImageError, match="no file beside it"):
            images.path(bench.put("NRRD", {name: nrrd.encode(), "i.raw": bytes(4)}))


def test_the_better_resource_is_the_image(bench, series, tmp_path):
    content = nifti(VOXELS, tmp_path / "x.nii")
    bench.put("DICOM", series)
    bench.put("NIFTI", {"x.nii": content})
    scan = make_scan(Resource("SNAPSHOTS", 2, 5), Resource("NIFTI", 1, len(content)), Resource("DICOM", 4, 100))
    assert bench.images().grid(scan).shape == (10, 12, 4)
    assert bench.images(image_resource="NIFTI,DICOM").path(scan).read_bytes() == content


def test_an_image_resource_of_another_name(bench, series, tmp_path):
    content = nifti(VOXELS, tmp_path / "x.nii")
    images = bench.images(image_resource="RECON,ORIGINALS")
    assert images.path(bench.put("RECON", {"x.nii": content})).read_bytes() == content
    assert images.grid(bench.put("ORIGINALS", series, "2")).shape == (10, 12, 4)


def test_no_image_names_what_was_found(bench):
    scan = make_scan(Resource("SNAPSHOTS", 2, 5), Resource("DICOM", 0, 0))
    with pytest.raises(NoImageError, match=r"XNAT_E00001/1 has no image; its resources: SNAPSHOTS, DICOM.*NIFTI"):
        bench.images().path(scan)
    assert bench.images().local(scan) is None


def test_a_resource_without_files_or_without_images(bench):
    empty = make_scan(Resource("DICOM", None, None))
    with pytest.raises(NoImageError, match="holds no files"):
        bench.images().path(empty)
    with pytest.raises(NoImageError, match=r"holds no image: a.txt.*\.nii\.gz"):
        bench.images().path(bench.put("NIFTI", {"a.txt": b"words"}))


def test_several_images_are_named(bench):
    with pytest.raises(ImageError, match=r"several images: a.nii.gz, b.nii"):
        bench.images().path(bench.put("NIFTI", {"a.nii.gz": b"1", "b.nii": b"2", "c.txt": b"3"}))


@pytest.mark.parametrize("others", [["brain_mask.nii"], ["seg-brain.nii.gz", "labels.nii"], ["brain.nrrd"]])
def test_the_file_that_is_clearly_the_image_is_used(bench, tmp_path, others):
    content = nifti(VOXELS, tmp_path / "x.nii")
    files = {"brain.nii": content, **dict.fromkeys(others, b"other")}
    assert bench.images().path(bench.put("NIFTI", files)).read_bytes() == content


@pytest.mark.parametrize(("label", "name"), [("NIFTI", "a.nii.gz"), ("NRRD", "a.nrrd"), ("PNG", "a.png")])
def test_a_file_that_is_not_an_image_is_an_error_and_is_not_kept(bench, label, name):
    images = bench.images()
    scan = bench.put(label, {name: b"no image at all" * 100})
    with pytest.raises(ImageError, match="cannot be read as an image"):
        images.path(scan)
    assert images.local(scan) is None
    assert images.cache.entries() == []


def test_files_that_are_not_dicom_are_an_error_and_nothing_is_kept(bench):
    images = bench.images()
    with pytest.raises(NoImageError):
        images.path(bench.put("DICOM", {"a.dcm": b"no", "b.dcm": b"dicom"}))
    assert [path.name for path in images.cache.folder.iterdir()] == [".locks"]


def test_a_failed_download_leaves_nothing_and_the_next_succeeds(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    asked = f"{scan.path}/resources/DICOM/files?zip"
    bench.archive.answers[asked] = lambda: ("application/zip", b"PK\x03\x04 cut", None)
    with pytest.raises(TransferError):
        images.path(scan)
    assert images.cache.entries() == []
    del bench.archive.answers[asked]
    assert images.path(scan).exists()


def test_files_that_change_while_they_come_are_fetched_anew(bench, series, tmp_path):
    images, scan = bench.images(), bench.put("DICOM", series)
    asked = f"{scan.path}/resources/DICOM/files"

    def before_the_upload():
        del bench.archive.answers[asked]
        bench.archive.resources[scan.path + "/resources/DICOM"] = make_series(tmp_path / "other", seed=1, slices=6)
        return "application/json", json.dumps(bench.archive.listing(series)).encode(), -1

    bench.archive.answers[asked] = before_the_upload
    assert images.grid(scan).shape == (10, 12, 6)


def test_a_server_error_is_passed_on(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    bench.archive.answers[f"{scan.path}/resources/DICOM/files"] = lambda: ("text/html", b"<h3>no</h3>", -1, 500)
    with pytest.raises(ServerError, match="500"):
        images.path(scan)


@pytest.mark.parametrize(
    ("form", "writes"), [("dicom", "client.download.open"), ("nifti", "convert.dicom.conversion.write_nifti")]
)
def test_a_disk_that_fills_up_is_named(bench, series, monkeypatch, form, writes):
    images, scan = bench.images(image_format=form), bench.put("DICOM", series)

    def full(*_args, **_options):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(f"monailabel_xnat.{writes}", full, raising=False)
    with pytest.raises(CacheError, match=r"no space left for images in .* MB needed"):
        images.path(scan)
    assert images.cache.entries() == []


def test_nothing_of_the_download_stays_beside_the_nifti(bench, series):
    path = bench.images().path(bench.put("DICOM", series))
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, path.name + ".json"]


def test_a_scan_id_with_odd_characters(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series, number="4 a#ü%")
    assert images.path(scan).exists()
    assert quoted("4 a#ü%") in scan.path


def test_which_images_the_slices_were_made_of_is_known_without_fetching_them_again(bench, series):
    images, scan = bench.images(), bench.put("DICOM", series)
    images.path(scan)
    sent = bench.downloads()
    sources = images.grid(scan).sources()
    assert bench.downloads() == sent
    uids = [pydicom.dcmread(io.BytesIO(content)).SOPInstanceUID for content in series.values()]
    assert {uid for uid, _ in sources} == set(uids)
    assert sorted(sources.values()) == list(range(len(uids)))
    images.discard(scan)
    assert not (images.cache.folder / ".sources").exists()


def each_with_its_own_series(series, uid="", change=lambda dataset, number: None):
    files = {}
    for number, (name, content) in enumerate(sorted(series.items())):
        dataset = pydicom.dcmread(io.BytesIO(content))
        dataset.SeriesInstanceUID = uid if uid and number == 0 else generate_uid()
        change(dataset, number)
        stream = io.BytesIO()
        dataset.save_as(stream)
        files[name] = stream.getvalue()
    return files


@pytest.mark.parametrize("listed", ["1.2.3", "9.9.9", ""])
def test_slices_with_a_series_uid_each_are_joined_with_a_note(bench, series, caplog, listed):
    scan = bench.put("DICOM", each_with_its_own_series(series, "1.2.3"))._replace(series_uid=listed)
    images = bench.images()
    assert images.grid(scan).shape == (10, 12, 4)
    assert "each of the 4 images has a Series Instance UID of its own" in images.notes[str(scan.image_id)]
    assert any("of its own" in record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def test_slices_with_a_series_uid_each_that_are_no_stack_are_refused(bench, series):
    def same_place(dataset, number):
        dataset.ImagePositionPatient = [0, 0, number // 2]

    scan = bench.put("DICOM", each_with_its_own_series(series, "1.2.3", same_place))._replace(series_uid="1.2.3")
    with pytest.raises(ImageError, match="has a Series Instance UID of its own, and they lie at only 2 positions"):
        bench.images().path(scan)


def test_a_series_that_is_only_a_part_of_the_stack_is_refused(bench, series):
    def part(dataset, number):
        dataset.SeriesInstanceUID = "1.2.3" if number < 1 else "1.2.4"

    scan = bench.put("DICOM", each_with_its_own_series(series, change=part))._replace(series_uid="1.2.3")
    with pytest.raises(ImageError, match="only 1 of the 4 images that make one regular stack are of the series"):
        bench.images().path(scan)
