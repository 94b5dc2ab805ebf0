"""Archives of a size that matters, made of metadata alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from monailabel_xnat.sandbox.archive.store import Store

SITE_ID = "XNAT"
# Numbers no real object reaches, so that seeded ones never meet those of the sequences.
_FIRST = 900_000_000
_SCANS_OF_SESSION = 1000
_FILES, _BYTES = 200, 105_000_000


def seed_sessions(
    store: Store, project: str, sessions: int, scans: int, resources: Sequence[str], timestamp: str
) -> None:
    """Make many CT sessions, each of a subject of its own, in one transaction.

    Parameters
    ----------
    store
        Where to.
    project
        ID of a project that exists.
    sessions, scans
        Number of sessions, and of scans in each.
    resources
        Labels of the resources of each scan; they have counts, but no files.
    timestamp
        Date and time of their making.
    """
    with store.write() as db:
        first = store.next_value("seeded", sessions) + _FIRST
        numbers = range(first, first + sessions)
        stamp = (timestamp, "admin", timestamp)
        db.executemany(_SUBJECTS, ((_id("S", item), project, f"seed{item}", "{}", *stamp) for item in numbers))
        db.executemany(
            _EXPERIMENTS,
            ((_id("E", item), project, f"seed{item}_CT1", _id("S", item), _study(item), *stamp) for item in numbers),
        )
        db.executemany(_SCANS, (row + stamp for row in _scan_rows(numbers, scans)))
        db.executemany(
            _RESOURCES,
            (
                (str(pk), name, f"seeded/{pk}/{name}", _FILES, _BYTES)
                for pk, *_ in _scan_rows(numbers, scans)
                for name in resources
            ),
        )


_SUBJECTS = (
    "INSERT INTO subjects (id, project, label, fields, insert_date, insert_user, last_modified)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_EXPERIMENTS = (
    "INSERT INTO experiments (id, project, label, xsi_type, subject_id, fields, insert_date, insert_user,"
    " last_modified) VALUES (?, ?, ?, 'xnat:ctSessionData', ?, ?, ?, ?, ?)"
)
_SCANS = (
    "INSERT INTO scans (pk, experiment, id, xsi_type, fields, insert_date, insert_user, last_modified)"
    " VALUES (?, ?, ?, 'xnat:ctScanData', ?, ?, ?, ?)"
)
_RESOURCES = (
    "INSERT INTO resources (kind, parent, label, folder, format, content, file_count, file_size)"
    " VALUES ('scan', ?, ?, ?, 'DICOM', 'RAW', ?, ?)"
)


def _id(kind: str, number: int) -> str:
    return f"{SITE_ID}_{kind}{number}"


def _study(number: int) -> str:
    return json.dumps({"UID": f"1.2.826.0.1.{number}", "date": "2026-01-31", "modality": "CT"})


def _scan_rows(sessions: range, scans: int) -> Iterator[tuple[Any, ...]]:
    for session in sessions:
        for scan in range(1, scans + 1):
            fields = {
                "type": "AXIAL",
                "UID": f"1.2.826.0.1.{session}.{scan}",
                "quality": "usable",
                "frames": str(_FILES),
                "series_description": f"axial {scan}",
                "modality": "CT",
            }
            yield session * _SCANS_OF_SESSION + scan, _id("E", session), str(scan), json.dumps(fields)
