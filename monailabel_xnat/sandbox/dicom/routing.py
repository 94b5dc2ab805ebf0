"""Where DICOM wants to go: the project, subject and session that its headers name (XNAT's DICOM identifiers)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pydicom

from monailabel_xnat.sandbox.dicom.series import element_text, without_warnings, xnat_label

# Where XNAT looks for "Project:P Subject:S Session:E", in this order.
_COMMENTS = ("PatientComments", "StudyComments", "AdditionalPatientHistory")
# Where it looks for the plain ID of a project.
_PROJECT_FIELDS = ("StudyDescription", "AccessionNumber")


@dataclass(frozen=True)
class Route:
    """A destination; each part is empty where the headers say nothing."""

    project: str = ""
    subject: str = ""
    session: str = ""
    may_be_project: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a study goes; labels that are empty are made from its headers.

    `moment` and `folder` are the parts of an address in the prearchive, where one was asked for.
    """

    project: str
    subject: str = ""
    session: str = ""
    moment: str = ""
    folder: str = ""


def read_route(path: Path) -> Route:
    """Read the destination from the header of a file.

    Returns
    -------
    Route
        With `may_be_project`: values that are the ID of a project if there is one of that ID.
    """
    with without_warnings():
        header = pydicom.dcmread(
            path, stop_before_pixels=True, force=True, specific_tags=[*_COMMENTS, *_PROJECT_FIELDS]
        )
        comments = [element_text(header, name) for name in _COMMENTS]
        plain = tuple(element_text(header, name) for name in _PROJECT_FIELDS)
    return Route(
        project=_assigned("Project", comments),
        subject=xnat_label(_assigned("Subject", comments)),
        session=xnat_label(_assigned("Session", comments)),
        may_be_project=tuple(value for value in plain if value),
    )


def _assigned(name: str, comments: Iterable[str]) -> str:
    """Find ``Name: value`` in a comment; the value ends at a blank, a comma or a semicolon."""
    for comment in comments:
        found = re.search(rf"(?:^|[\s,;]){name}:\s*([\w-]+)(?=[\s,;]|$)", comment, re.IGNORECASE)
        if found:
            return found.group(1)
    return ""
