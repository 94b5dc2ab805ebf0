"""How DICOM is packed for XNAT."""

from __future__ import annotations

import io
import re
import zipfile

import pytest

from monailabel_xnat.client.dicom_source import Instance, pack


def instance(sop: str) -> Instance:
    return Instance("1.2", "1.2.3", sop, True, True, "", "", lambda: io.BytesIO(sop.encode()))


def names(folder, *sops: str) -> list[str]:
    pack([instance(sop) for sop in sops], folder / "packed.zip")
    with zipfile.ZipFile(folder / "packed.zip") as archive:
        return archive.namelist()


def test_slices_that_are_sent_later_do_not_take_the_place_of_those_sent_before(tmp_path):
    """XNAT keeps the names in a zip (xnat-rest-tests TestDicomFileNamer.testDicomZipImportWithoutRename)."""
    first, second = names(tmp_path, "1.2.3.1", "1.2.3.2"), names(tmp_path, "1.2.3.3", "1.2.3.4")
    assert set(first).isdisjoint(second)
    assert names(tmp_path, "1.2.3.2", "1.2.3.1") == first[::-1]


@pytest.mark.parametrize("sop", ["../x", "", "1.2/3", "1" * 65])
def test_an_odd_uid_makes_no_odd_name(tmp_path, sop):
    (name,) = names(tmp_path, sop)
    assert re.fullmatch(r"[0-9a-f.-]+\.dcm", name)
    assert names(tmp_path, sop) != [name]
