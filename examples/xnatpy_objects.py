"""From ``xnat.connect`` to a saved label: xnatpy's objects and MONAI Label's datastore side by side.

    XNAT_HOST=https://xnat.example.org XNAT_USER=ann XNAT_PASS=... python examples/xnatpy_objects.py LIVER

This script takes the first unlabelled image of a project, marks everything brighter than its mean, and saves that as a
draft.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import xnat

from monailabel_xnat import XNATDatastore


def main(project: str) -> None:
    """Draft a label for one image of a project, and show where it is."""
    host, login = os.environ["XNAT_HOST"], {"user": os.environ["XNAT_USER"], "password": os.environ["XNAT_PASS"]}
    # The datastore works beside the session, with its login. Both can be used at the same time.
    with xnat.connect(host, **login) as session, XNATDatastore(connection=session, project=project) as datastore:
        image_id = datastore.get_unlabeled_images("original")[0]
        scan = datastore.scan(image_id)  # an object of xnatpy
        print(f"{image_id}: scan {scan.id} of {scan.parent.label}, {scan.series_description}")

        image = nibabel.load(datastore.get_image_uri(scan))  # a scan can be used like an image id
        voxels = np.asarray(image.dataobj)
        label = nibabel.Nifti1Image((voxels > voxels.mean()).astype(np.uint8), image.affine)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "label.nii.gz")
            nibabel.save(label, path)
            datastore.save_label(scan, str(path), "original", {"made_by": Path(__file__).name})

        resource = datastore.label_resource(image_id, "original")  # xnatpy again
        print(f"{resource.label} holds {', '.join(file.id for file in resource.files.values())}")
        print(f"{len(datastore.image_ids(session.projects[project]))} images in {session.projects[project].name}")


if __name__ == "__main__":
    main(sys.argv[1])
