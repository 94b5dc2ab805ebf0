"""Real DICOM from many scanners: filed into the sandbox from the command line's import, and fetched as NIfTI."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from monailabel_xnat.errors import ImageConversionError
from monailabel_xnat.sandbox import Sandbox

SERIES = Path(__file__).parents[2].parent / "shared" / "dicom"
PLAIN = (
    "ct_3slices_for_seg",
    "ct_philips_axial5mm",
    "mr_hitachi_small",
    "mr_philips_enhanced_anat",
    "mr_sag4_explicit",
    "mr_sag4_implicit",
    "mr_sag4_j2k",
    "mr_sag4_jpeg",
    "mr_sag4_jpegls",
    "mr_sag_j2k_fragmented",
    "mr_siemens_sagittal",
    "mr_two_slices",
)
NOT_ONE_VOLUME = (
    "ct_ge_tilt_varspacing",
    "ct_missing_slice",
    "ct_same_position_notvolume",
    "mr_mixed_orientation",
)

pytestmark = pytest.mark.skipif(not SERIES.is_dir(), reason="the real series are not here")


@pytest.fixture(scope="module")
def archive():
    with Sandbox() as sandbox:
        for name in (*PLAIN, *NOT_ONE_VOLUME):
            sandbox.import_dicom(SERIES / name)
        yield sandbox


@pytest.fixture(scope="module")
def datastore(archive, tmp_path_factory):
    from monailabel_xnat import XNATDatastore

    cache = tmp_path_factory.mktemp("cache")
    opened = XNATDatastore(archive.url, archive.username, archive.password, cache_path=cache)
    yield opened
    opened.close()


def images_of(datastore, name):
    return [image for image in datastore.list_images() if image.split("/")[0] == name]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_volume_is_what_monais_reader_gives(datastore, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        monai = pytest.importorskip("monai.data")
    (image,) = images_of(datastore, name)
    found = nib.load(datastore.get_image_uri(image))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = monai.ITKReader(affine_lps_to_ras=True)
        expected, meta = reader.get_data(reader.read(str(SERIES / name)))
    assert found.shape == np.squeeze(expected).shape or found.shape == expected.shape
    assert (np.asarray(found.dataobj).reshape(expected.shape) == expected).all()
    assert np.abs(found.affine - np.asarray(meta["affine"])).max() < 1e-4


@pytest.mark.parametrize("name", NOT_ONE_VOLUME)
def test_what_is_not_one_volume_is_refused_by_name(datastore, name):
    (image,) = images_of(datastore, name)
    with pytest.raises(ImageConversionError) as caught:
        datastore.get_image_uri(image)
    assert caught.value.status_code == 422
    assert len(str(caught.value)) > 40
