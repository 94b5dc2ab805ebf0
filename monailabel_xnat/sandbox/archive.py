"""The objects of an archive: projects, subjects, experiments and scans, created, found, changed and deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from monailabel_xnat.sandbox.accounts import User
from monailabel_xnat.sandbox.datatypes import DataTypes
from monailabel_xnat.sandbox.model import Experiment, Project, Scan, Subject, load
from monailabel_xnat.sandbox.store import Store

SITE_ID = "XNAT"
SYSTEM = User("admin", is_admin=True)
ROLES = ("owner", "member", "collaborator")


class Archive:
    """Metadata of everything that XNAT knows, apart from resources and files.

    Parameters
    ----------
    folder
        Where the archive lives; made with mode 0700.
    types
        The site's data types.
    """

    def __init__(self, folder: Path, types: DataTypes) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.types = types
        self.store = Store(folder / "archive.sqlite")
        self._lock = threading.RLock()

    def close(self) -> None:
        """Close the database."""
        self.store.close()

    # Projects

    def projects(self) -> list[Project]:
        """List all projects, by ID."""
        return [load(Project, row) for row in self.store.all("SELECT * FROM projects ORDER BY id")]

    def project(self, name: str) -> Project | None:
        """Find a project by its ID, or by an alias."""
        row = self.store.one("SELECT * FROM projects WHERE id = ?", (name,))
        if row is None:
            row = self.store.one("SELECT * FROM projects WHERE json_extract(fields, '$.alias') = ?", (name,))
        return load(Project, row) if row else None

    def create_project(
        self, project_id: str, user: User = SYSTEM, accessibility: str = "private", **fields: str
    ) -> Project:
        """Make a project; its maker owns it, and users with a standing role get that role."""
        now = timestamp()
        fields = {"name": project_id, "secondary_ID": project_id, **fields}
        with self.store.write() as db:
            db.execute(
                "INSERT INTO projects (id, accessibility, fields, insert_date, insert_user, last_modified)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (project_id, accessibility, json.dumps(fields), now, user.login, now),
            )
            db.execute(
                "INSERT INTO memberships SELECT ?, login, standing_role FROM users WHERE standing_role != ''",
                (project_id,),
            )
            db.execute("INSERT OR REPLACE INTO memberships VALUES (?, ?, 'owner')", (project_id, user.login))
        found = self.project(project_id)
        assert found is not None
        return found

    def set_accessibility(self, project: str, level: str) -> None:
        """Make a project private, protected or public."""
        with self.store.write() as db:
            db.execute("UPDATE projects SET accessibility = ? WHERE id = ?", (level, project))

    def set_member(self, project: str, login: str, role: str | None) -> None:
        """Give a user a role in a project, or none."""
        with self.store.write() as db:
            db.execute("DELETE FROM memberships WHERE project = ? AND login = ?", (project, login))
            if role:
                db.execute("INSERT INTO memberships VALUES (?, ?, ?)", (project, login, role))

    def members(self, project: str) -> list[tuple[str, str]]:
        """List login and role of the users of a project."""
        rows = self.store.all("SELECT login, role FROM memberships WHERE project = ? ORDER BY login", (project,))
        return [(row["login"], row["role"]) for row in rows]

    def roles(self, user: User) -> dict[str, str]:
        """Give the role of a user in each project in which there is one."""
        rows = self.store.all("SELECT project, role FROM memberships WHERE login = ?", (user.login,))
        return {row["project"]: row["role"] for row in rows}

    # Subjects

    def subjects(self, project: str | None = None) -> list[tuple[Subject, str]]:
        """List subjects with the label they have: of one project, shared ones included, or of the site."""
        if project is None:
            found = [load(Subject, row) for row in self.store.all("SELECT * FROM subjects ORDER BY id")]
            return [(subject, subject.label) for subject in found]
        rows = self.store.all(
            "SELECT subjects.*, shares.label AS shared_label FROM subjects LEFT JOIN shares"
            " ON shares.item = subjects.id AND shares.project = ?"
            " WHERE subjects.project = ? OR shares.project IS NOT NULL ORDER BY subjects.id",
            (project, project),
        )
        return [_with_label(Subject, row) for row in rows]

    def subject(self, name: str, project: str | None = None) -> Subject | None:
        """Find a subject by ID, or within a project by ID or label."""
        if project is None:
            row = self.store.one("SELECT * FROM subjects WHERE id = ?", (name,))
            return load(Subject, row) if row else None
        return next((item for item, label in self.subjects_named(name, project)), None)

    def subjects_named(self, name: str, project: str) -> list[tuple[Subject, str]]:
        """Find the subjects of a project, shared ones included, with an ID or label."""
        rows = self.store.all(
            "SELECT subjects.*, shares.label AS shared_label FROM subjects LEFT JOIN shares"
            " ON shares.item = subjects.id AND shares.project = ?"
            " WHERE (subjects.project = ? OR shares.project IS NOT NULL)"
            " AND (subjects.id = ? OR COALESCE(shares.label, subjects.label) = ?)",
            (project, project, name, name),
        )
        return [_with_label(Subject, row) for row in rows]

    def create_subject(self, project: str, label: str, user: User = SYSTEM, **fields: Any) -> Subject:
        """Make a subject."""
        now = timestamp()
        with self.store.write() as db:
            number = f"{SITE_ID}_S{self.store.next_value('subject'):05d}"
            db.execute(
                "INSERT INTO subjects (id, project, label, fields, insert_date, insert_user, last_modified)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, project, label, json.dumps(fields), now, user.login, now),
            )
        found = self.subject(number)
        assert found is not None
        return found

    # Experiments: sessions and assessors

    def experiment(self, name: str, project: str | None = None) -> Experiment | None:
        """Find an experiment by ID, or within a project, shared ones included, by ID or label."""
        if project is None:
            row = self.store.one("SELECT * FROM experiments WHERE id = ?", (name,))
        else:
            row = self.store.one(
                "SELECT experiments.* FROM experiments LEFT JOIN shares"
                " ON shares.item = experiments.id AND shares.project = ?"
                " WHERE (experiments.project = ? OR shares.project IS NOT NULL)"
                " AND (experiments.id = ? OR COALESCE(shares.label, experiments.label) = ?)",
                (project, project, name, name),
            )
        return load(Experiment, row) if row else None

    def assessors(self, session: str) -> list[Experiment]:
        """List the assessors of a session."""
        rows = self.store.all("SELECT * FROM experiments WHERE session_id = ? ORDER BY id", (session,))
        return [load(Experiment, row) for row in rows]

    def create_experiment(
        self,
        project: str,
        label: str,
        xsi_type: str,
        *,
        subject: str | None = None,
        session: str | None = None,
        user: User = SYSTEM,
        experiment_id: str = "",
        **fields: Any,
    ) -> Experiment:
        """Make an experiment of a subject, or an assessor of a session."""
        now = timestamp()
        with self.store.write() as db:
            number = experiment_id or f"{SITE_ID}_E{self.store.next_value('experiment'):05d}"
            db.execute(
                "INSERT INTO experiments (id, project, label, xsi_type, subject_id, session_id, fields, insert_date,"
                " insert_user, last_modified) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (number, project, label, xsi_type, subject, session, json.dumps(fields), now, user.login, now),
            )
        found = self.experiment(number)
        assert found is not None
        return found

    # Scans

    def scans(self, experiment: str) -> list[Scan]:
        """List the scans of a session."""
        rows = self.store.all("SELECT * FROM scans WHERE experiment = ? ORDER BY pk", (experiment,))
        return [load(Scan, row) for row in rows]

    def create_scan(self, experiment: str, scan_id: str, xsi_type: str, user: User = SYSTEM, **fields: Any) -> Scan:
        """Make a scan."""
        now = timestamp()
        with self.store.write() as db:
            db.execute(
                "INSERT INTO scans (experiment, id, xsi_type, fields, insert_date, insert_user, last_modified)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (experiment, scan_id, xsi_type, json.dumps(fields), now, user.login, now),
            )
        return next(scan for scan in self.scans(experiment) if scan.id == scan_id)

    # All kinds

    def set_fields(self, table: str, key: str, value: Any, fields: dict[str, Any]) -> None:
        """Merge fields into an object; None removes one."""
        with self.store.write() as db:
            row = db.execute(f"SELECT fields FROM {table} WHERE {key} = ?", (value,)).fetchone()
            merged = {**json.loads(row["fields"]), **fields}
            kept = {name: item for name, item in merged.items() if item is not None}
            db.execute(
                f"UPDATE {table} SET fields = ?, last_modified = ? WHERE {key} = ?",
                (json.dumps(kept), timestamp(), value),
            )

    def share(self, item: str, project: str, label: str) -> None:
        """Show a subject or an experiment in another project, under a label of its own there."""
        with self.store.write() as db:
            db.execute("INSERT INTO shares VALUES (?, ?, ?)", (item, project, label))

    def unshare(self, item: str, project: str) -> None:
        """End a share."""
        with self.store.write() as db:
            db.execute("DELETE FROM shares WHERE item = ? AND project = ?", (item, project))

    def shares(self, item: str) -> dict[str, str]:
        """Give the label of an object in each project that it is shared into."""
        rows = self.store.all("SELECT project, label FROM shares WHERE item = ?", (item,))
        return {row["project"]: row["label"] for row in rows}

    def seed_sessions(self, project: str, sessions: int, scans: int, resources: Iterable[str] = ("DICOM",)) -> None:
        """Make many sessions of metadata, without files, in one transaction."""
        now = timestamp()
        first = self.store.next_value("seed") * 1_000_000
        subjects, experiments, scan_rows, resource_rows = [], [], [], []
        for number in range(sessions):
            subject, experiment = f"{SITE_ID}_S9{first + number:08d}", f"{SITE_ID}_E9{first + number:08d}"
            subjects.append((subject, project, f"seed{number:05d}", "{}", now, "admin", now))
            fields = json.dumps({"UID": f"1.2.826.0.1.{first + number}", "date": "2026-01-31"})
            label = f"seed{number:05d}_CT1"
            experiments.append((experiment, project, label, "xnat:ctSessionData", subject, fields, now, "admin", now))
            for scan in range(1, scans + 1):
                pk = (first + number) * 100 + scan
                values = {
                    "type": "AXIAL",
                    "UID": f"1.2.826.0.1.{first + number}.{scan}",
                    "quality": "usable",
                    "frames": "200",
                    "series_description": f"axial {scan}",
                    "modality": "CT",
                }
                row = (pk, experiment, str(scan), "xnat:ctScanData", json.dumps(values), now, "admin", now)
                scan_rows.append(row)
                resource_rows += [
                    ("scan", str(pk), name, f"seeded/{pk}/{name}", 200, 105_000_000) for name in resources
                ]
        with self.store.write() as db:
            db.executemany(
                "INSERT INTO subjects (id, project, label, fields, insert_date, insert_user, last_modified)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                subjects,
            )
            db.executemany(
                "INSERT INTO experiments (id, project, label, xsi_type, subject_id, fields, insert_date, insert_user,"
                " last_modified) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                experiments,
            )
            db.executemany(
                "INSERT INTO scans (pk, experiment, id, xsi_type, fields, insert_date, insert_user, last_modified)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                scan_rows,
            )
            db.executemany(
                "INSERT INTO resources (kind, parent, label, folder, file_count, file_size) VALUES (?, ?, ?, ?, ?, ?)",
                resource_rows,
            )


def timestamp() -> str:
    """Give the time as XNAT's tables write it."""
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _with_label(kind: Any, row: Any) -> tuple[Any, str]:
    values = dict(row)
    shared = values.pop("shared_label")
    item = load(kind, values)
    return item, shared or item.label
