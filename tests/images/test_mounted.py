"""A mounted archive: files are read there if they are what XNAT lists, and else downloaded with a warning."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from scan_bench import make_series

from monailabel_xnat.catalog import Catalog
from monailabel_xnat.client.session import Session
from monailabel_xnat.config import Settings
from monailabel_xnat.images import Images
from monailabel_xnat.sandbox import Sandbox

LAYOUTS = {
    "XNAT's own": "P/arc001/ses 1/SCANS/1/DICOM",
    "another archive folder": "P/arc042/ses 1/SCANS/1/DICOM",
    "JupyterHub": "projects/P/experiments/ses 1/SCANS/1/DICOM",
    "mounted at the project": "arc001/ses 1/SCANS/1/DICOM",
    "mounted at the archive folder": "ses 1/SCANS/1/DICOM",
}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in {**files, "scan_1_catalog.xml": b"<cat/>"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_read_in_place_without_download(bench, series, tmp_path, caplog, layout):
    write(tmp_path / "mount" / layout, series)
    expected = bench.images().path(bench.put("DICOM", series)).read_bytes()
    bench.images().discard(bench.put("DICOM", series))
    downloads = bench.downloads()
    images, scan = bench.images(asset_path=tmp_path / "mount"), bench.put("DICOM", series)
    assert images.path(scan).read_bytes() == expected
    folder = images.dicom_folder(scan)
    assert folder.resolve() == (tmp_path / "mount" / layout).resolve()
    assert bench.downloads() == downloads
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_scan_whose_number_was_taken_lies_in_the_folder_of_the_number(bench, series, tmp_path):
    write(tmp_path / "mount/P/arc001/ses 1/SCANS/4/DICOM", series)
    bench.images(asset_path=tmp_path / "mount").path(bench.put("DICOM", series, number="4-MR1"))
    assert bench.downloads() == 0


@pytest.mark.parametrize(
    "server_path", ["/data/xnat/archive/P/arc001/odd/SCANS/7/DICOM", "/mnt/P/arc001/odd/SCANS/7/DICOM"]
)
def test_the_servers_own_path_is_found_by_its_tail(bench, series, tmp_path, server_path):
    write(tmp_path / "mount/P/arc001/odd/SCANS/7/DICOM", series)
    scan = bench.put("DICOM", series)
    item = {
        "field": "file",
        "items": [
            {"data_fields": {"label": "SNAPSHOTS", "URI": "/elsewhere/c.xml"}},
            {"data_fields": {"label": "DICOM", "URI": f"{server_path}/scan_1_catalog.xml"}},
        ],
    }
    bench.archive.json_items[scan.path] = {"items": [{"data_fields": {"ID": "1"}, "children": [item]}]}
    bench.images(asset_path=tmp_path / "mount").path(scan)
    assert f"{scan.path}/resources/DICOM/files?zip" not in bench.archive.asked


def test_sub_folders_and_another_resource_in_place(bench, series, tmp_path):
    deep = {f"deep/{name}": content for name, content in series.items()}
    write(tmp_path / "mount/P/arc001/ses 1/SCANS/1/DICOM", deep)
    images = bench.images(asset_path=tmp_path / "mount")
    assert images.grid(bench.put("DICOM", deep)).shape == (10, 12, 4)
    nifti = images.path(bench.put("DICOM", deep)).read_bytes()
    write(tmp_path / "mount/P/arc001/ses 1/SCANS/2/NIFTI", {"image.nii": nifti})
    scan = bench.put("NIFTI", {"image.nii": nifti}, number="2")
    path = images.path(scan)
    assert path.name.startswith(scan.image_id.file_stem)
    assert path.resolve() == (tmp_path / "mount/P/arc001/ses 1/SCANS/2/NIFTI/image.nii").resolve()
    assert images.checksum(scan) is None
    assert bench.downloads() == 0


def test_the_mount_is_not_written(bench, series, tmp_path):
    folder = tmp_path / "mount/P/arc001/ses 1/SCANS/1/DICOM"
    write(folder, series)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in (tmp_path / "mount").rglob("*")}
    images, scan = bench.images(asset_path=tmp_path / "mount", image_format="dicom"), bench.put("DICOM", series)
    images.path(scan)
    images.grid(scan)
    images.discard(scan)
    images.cache.prune()
    assert {path: (path.stat().st_mtime_ns, path.stat().st_mode) for path in (tmp_path / "mount").rglob("*")} == before


WRONG = {
    "no such folder": lambda folder, files: None,
    "a file missing": lambda folder, files: write(folder, dict(list(files.items())[1:])),
    "a file of another size": lambda folder, files: write(folder, {**files, "0002.dcm": b"short"}),
}


@pytest.mark.parametrize("prepare", WRONG.values(), ids=WRONG)
def test_a_mounted_file_that_differs_is_downloaded_with_a_warning_that_names_the_path(
    bench, series, tmp_path, caplog, prepare
):
    folder = tmp_path / "mount/P/arc001/ses 1/SCANS/1/DICOM"
    (tmp_path / "mount").mkdir()
    prepare(folder, series)
    bench.images(asset_path=tmp_path / "mount").path(bench.put("DICOM", series))
    assert bench.downloads() >= 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(tmp_path / "mount/P/arc") in warnings[0]


@pytest.mark.parametrize("name", ["../../../../secret", "/etc/hostname"])
def test_a_listed_name_that_leaves_the_folder_is_not_followed(bench, series, tmp_path, name):
    write(tmp_path / "mount/P/arc001/ses 1/SCANS/1/DICOM", series)
    (tmp_path / "mount/secret").write_text("s")
    with pytest.raises(OSError, match="leaves its folder"):
        bench.images(asset_path=tmp_path / "mount").path(bench.put("DICOM", {**series, name: b"s"}))


def test_a_mount_that_goes_away_is_downloaded_instead(bench, series, tmp_path):
    write(tmp_path / "mount/P/arc001/ses 1/SCANS/1/DICOM", series)
    images, scan = bench.images(asset_path=tmp_path / "mount", image_format="dicom"), bench.put("DICOM", series)
    images.path(scan)
    (tmp_path / "mount").rename(tmp_path / "gone")
    assert {path.name for path in images.path(scan).iterdir()} == set(series)
    assert bench.downloads() >= 1


def test_the_sandbox_s_own_folder_is_found_by_what_it_says(tmp_path):
    make_series(tmp_path / "series")
    with Sandbox(data=tmp_path / "data") as sandbox:
        sandbox.import_dicom(tmp_path / "series", "P")
        values = {"server": sandbox.url, "username": sandbox.username, "password": sandbox.password}
        archive = next(path.parents[1] for path in (tmp_path / "data").rglob("arc001"))
        settings = Settings.load({**values, "asset_path": archive, "cache_path": tmp_path / "cache"}, {}, {})
        session = Session(settings)
        images = Images(session, settings)
        folder = images.dicom_folder(Catalog(session).scans()[0])
        assert (tmp_path / "data").resolve() in folder.resolve().parents
        images.close()
        session.close()
