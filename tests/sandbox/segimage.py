"""A program like `itkimage2segimage`, which MONAI Label calls: it makes a DICOM SEG of a label map and its series."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path


def main() -> None:
    warnings.simplefilter("ignore")
    import pydicom
    import pydicom_seg
    import SimpleITK

    parser = argparse.ArgumentParser()
    for name in ("inputImageList", "inputDICOMDirectory", "outputDICOM", "inputMetadata"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    template = json.loads(Path(given.inputMetadata).read_text())
    writer = pydicom_seg.MultiClassWriter(
        template=pydicom_seg.template.from_dcmqi_metainfo(template),
        inplane_cropping=False,
        skip_empty_slices=True,
        skip_missing_segment=False,
    )
    series = [pydicom.dcmread(path, stop_before_pixels=True) for path in Path(given.inputDICOMDirectory).iterdir()]
    label = SimpleITK.Cast(SimpleITK.ReadImage(given.inputImageList), SimpleITK.sitkUInt16)
    writer.write(label, series).save_as(given.outputDICOM)


if __name__ == "__main__":
    main()
