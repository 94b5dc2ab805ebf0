"""Scans that are written directly into the sandbox's archive: they appear in listings, but have no files."""

from __future__ import annotations


def make_scan(
    archive, scan, subject="subj01", session="subj01_CT1", project="P", resources=("DICOM",), count=3, **fields
):
    """Make a scan, and its session and subject if they are missing. Return the IDs of subject and session."""
    owner = archive.subject(subject, project) or archive.create_subject(project, subject)
    found = archive.experiment(session, project)
    found = found or archive.create_experiment(project, session, "xnat:ctSessionData", subject=owner.id, UID="1.2.3")
    values = {"type": "AXIAL", "modality": "CT", "quality": "usable", "series_description": "axial", **fields}
    made = archive.create_scan(found.id, scan, "xnat:ctScanData", **values)
    with archive.store.write() as db:
        for label in resources:
            db.execute(
                "INSERT INTO resources (kind, parent, label, folder, file_count, file_size) VALUES (?, ?, ?, ?, ?, ?)",
                ("scan", str(made.pk), label, "nowhere", count, count and 100 * count),
            )
    return owner.id, found.id
