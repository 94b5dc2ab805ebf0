"""The site's anonymisation script, as XNAT has it from the start: who and what a study is, in XNAT's own names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pydicom

from monailabel_xnat.sandbox.dicom.routing import Place
from monailabel_xnat.sandbox.dicom.series import SeriesFiles, without_warnings


def anonymised(series: Sequence[SeriesFiles], place: Place, folder: Path) -> list[SeriesFiles]:
    """Write anonymised copies of the files of a study.

    Parameters
    ----------
    series
        All of one study.
    place
        Where it is filed: Study Description becomes the project's ID, Patient's Name the subject's label and Patient
        ID the session's.
    folder
        An empty folder for the copies.

    Returns
    -------
    list of SeriesFiles
        The same series, of the copies.
    """
    values = {"StudyDescription": place.project, "PatientName": place.subject, "PatientID": place.session}
    found: list[SeriesFiles] = []
    for number, item in enumerate(series):
        copies = [replace(file, path=folder / f"{number:05d}-{at:07d}") for at, file in enumerate(item.files)]
        for file, copy in zip(item.files, copies):
            _write(file.path, copy.path, values)
        found.append(
            replace(
                item,
                files=tuple(copies),
                study_description=place.project,
                patient_name=place.subject,
                patient_id=place.session,
            )
        )
    return found


def _write(path: Path, copy: Path, values: dict[str, str]) -> None:
    with without_warnings():
        dataset = pydicom.dcmread(path, force=True)
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(copy)
