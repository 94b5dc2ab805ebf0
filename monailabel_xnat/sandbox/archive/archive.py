"""The objects of an archive: projects, subjects, experiments and scans, created, found, changed and deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from monailabel_xnat.sandbox.access.accounts import User
from monailabel_xnat.sandbox.archive.datatypes import DataTypes
from monailabel_xnat.sandbox.archive.model import Experiment, Fields, Item, Project, Scan, Subject, merged
from monailabel_xnat.sandbox.archive.store import SITE_ID, Store, seed_sessions

SYSTEM = User("admin", is_admin=True)
T = TypeVar("T")
ROLES = ("owner", "member", "collaborator")


class Archive:
    """The metadata of everything that XNAT knows, except resources and files.

    Parameters
    ----------
    folder
        The folder of the archive. It is made with mode 0700.
    types
        The site's data types.
    anonymise
        Whether the site's anonymisation script is on.
    """

    def __init__(self, folder: Path, types: DataTypes, *, anonymise: bool = False) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.types = types
        self.is_anonymising = anonymise
        self.site_id = SITE_ID
        self.store = Store(folder / "archive.sqlite")
        self.filing = threading.Lock()  # held while a study is filed

    def close(self) -> None:
        """Close the database."""
        self.store.close()

    # Projects

    def projects(self) -> list[Project]:
        """List all projects, by ID."""
        return self.store.objects(Project, PROJECTS_SQL)

    def project(self, name: str) -> Project | None:
        """Return the project with this ID or alias, or None."""
        return self.store.object(Project, _PROJECT_SQL, {"name": name})

    def create_project(
        self, project_id: str, user: User = SYSTEM, accessibility: str = "private", **fields: Any
    ) -> Project:
        """Make a project. The user who makes it owns it, and users with a standing role get that role."""
        fields = {"name": project_id, "secondary_ID": project_id, **fields}
        with self.store.write() as db:
            self._insert("projects", user, fields, id=project_id, accessibility=accessibility)
            db.execute(
                "INSERT INTO memberships SELECT ?, login, standing_role FROM users WHERE standing_role != ''",
                (project_id,),
            )
            db.execute("INSERT OR REPLACE INTO memberships VALUES (?, ?, 'owner')", (project_id, user.login))
        return _there(self.project(project_id))

    def accessibility(self) -> dict[str, str]:
        """Return the accessibility of every project."""
        return {row["id"]: row["accessibility"] for row in self.store.all("SELECT id, accessibility FROM projects")}

    def is_retired(self, project_id: str) -> bool:
        """Return whether a project had this ID and was deleted."""
        return self.store.one("SELECT 1 FROM retired_projects WHERE id = ?", (project_id,)) is not None

    def set_accessibility(self, project: str, level: str) -> None:
        """Make a project private, protected or public."""
        self.store.update("projects", project, accessibility=level)

    def set_member(self, project: str, login: str, role: str | None) -> None:
        """Set the role of a user in a project, or remove it."""
        with self.store.write() as db:
            db.execute("DELETE FROM memberships WHERE project = ? AND login = ?", (project, login))
            if role:
                db.execute("INSERT INTO memberships VALUES (?, ?, ?)", (project, login, role))

    def members(self, project: str) -> list[tuple[str, str]]:
        """Return the login and role of each user of a project."""
        rows = self.store.all("SELECT login, role FROM memberships WHERE project = ? ORDER BY login", (project,))
        return [(row["login"], row["role"]) for row in rows]

    def roles(self, user: User) -> dict[str, str]:
        """Return the role of a user by project, for each project in which the user has a role."""
        rows = self.store.all("SELECT project, role FROM memberships WHERE login = ?", (user.login,))
        return {row["project"]: row["role"] for row in rows}

    # Subjects

    def subjects(self, project: str) -> list[Subject]:
        """Return the subjects of a project, without those that are shared into it."""
        return self.store.objects(Subject, "SELECT * FROM subjects WHERE project = ? ORDER BY id", (project,))

    def subject(self, name: str, project: str | None = None) -> Subject | None:
        """Return the subject with this ID, or, in a project, with this ID or label."""
        return self.store.object(Subject, *_lookup("subjects", name, project))

    def create_subject(self, project: str, label: str, user: User = SYSTEM, **fields: Any) -> Subject:
        """Make a subject."""
        with self.store.write():
            number = f"{self.site_id}_S{self.store.next_value('subject'):05d}"
            self._insert("subjects", user, fields, id=number, project=project, label=label)
        return _there(self.subject(number))

    # Experiments: sessions and assessors

    def experiment(self, name: str, project: str | None = None) -> Experiment | None:
        """Return the experiment with this ID, or, in a project (also shared into it), with this ID or label."""
        return self.store.object(Experiment, *_lookup("experiments", name, project))

    def experiments_of(self, column: str, value: str) -> list[Experiment]:
        """Return the experiments of a project (`column`: ``project``) or a subject (``subject_id``), assessors last."""
        sql = f"SELECT * FROM experiments WHERE {column} = ? ORDER BY session_id IS NOT NULL, id"  # noqa: S608
        return self.store.objects(Experiment, sql, (value,))

    def assessors(self, session: str) -> list[Experiment]:
        """List the assessors of a session."""
        return self.store.objects(Experiment, "SELECT * FROM experiments WHERE session_id = ? ORDER BY id", (session,))

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
        held = {"project": project, "label": label, "xsi_type": xsi_type, "subject_id": subject, "session_id": session}
        with self.store.write():
            number = experiment_id or f"{self.site_id}_E{self.store.next_value('experiment'):05d}"
            self._insert("experiments", user, fields, id=number, **held)
        return _there(self.experiment(number))

    # Scans

    def scans(self, experiment: str) -> list[Scan]:
        """List the scans of a session."""
        return self.store.objects(Scan, "SELECT * FROM scans WHERE experiment = ? ORDER BY pk", (experiment,))

    def create_scan(self, experiment: str, scan_id: str, xsi_type: str, user: User = SYSTEM, **fields: Any) -> Scan:
        """Make a scan."""
        self._insert("scans", user, fields, experiment=experiment, id=scan_id, xsi_type=xsi_type)
        return next(scan for scan in self.scans(experiment) if scan.id == scan_id)

    def scan_values(self, field: str, projects: Collection[str]) -> list[str]:
        """Return the values that a field of the scans has in some projects."""
        rows = self.store.all(_SCAN_VALUES_SQL, (f"$.{field}",))
        return sorted({row["value"] for row in rows if row["project"] in projects})

    # All kinds

    def _insert(self, table: str, user: User, fields: Fields, **values: Any) -> None:
        now = timestamp()
        made = {"fields": json.dumps(fields), "insert_date": now, "insert_user": user.login, "last_modified": now}
        self.store.insert(table, {**values, **made})

    def counts(self) -> dict[str, int]:
        """Return the number of objects of each data type."""
        return {row["xsi_type"]: row["count"] for row in self.store.all(_COUNTS_SQL)}

    def change(self, item: Item, **values: Any) -> None:
        """Set columns of an object, such as the ``status`` of an experiment, and the time of its last change."""
        self.store.update(item.table, item.key, **values, last_modified=timestamp())

    def set_fields(self, item: Item, fields: Mapping[str, Any]) -> None:
        """Merge fields into those that an object has now. None removes a field."""
        with self.store.write():
            row = self.store.get(item.table, item.key)
            if row is not None:
                self.change(item, fields=json.dumps(merged(json.loads(row["fields"]), fields)))

    def label_owner(self, kind: str, label: str, project: str) -> str:
        """Return the ID of the subject or experiment (`kind` is the table) with a label in a project, or ""."""
        row = self.store.one(_LABEL_SQL[kind], {"project": project, "name": label})
        return row["id"] if row else ""

    def rename(self, item: Subject | Experiment, project: str, label: str) -> None:
        """Rename a subject or experiment in its own or another project."""
        with self.store.write() as db:
            sql = "UPDATE shares SET label = ? WHERE item = ? AND project = ?"
            if not db.execute(sql, (label, item.id, project)).rowcount:
                self.change(item, label=label)

    def move(self, item: Subject | Experiment, project: str, label: str) -> None:
        """Make another project the primary project of a subject or experiment."""
        with self.store.write() as db:
            db.execute("DELETE FROM shares WHERE item = ? AND project = ?", (item.id, project))
            self.change(item, project=project, label=label)

    def drop(self, item: Item) -> None:
        """Delete the row of an object and its shares. Delete what the object holds before."""
        with self.store.write() as db:
            db.execute("DELETE FROM shares WHERE item = ?", (item.shared_as,))
            self.store.delete(item.table, item.key)
            if isinstance(item, Project):
                db.execute("INSERT OR IGNORE INTO retired_projects VALUES (?)", (item.id,))

    def label_in(self, item: Subject | Experiment, project: str) -> str:
        """Return the label that a subject or experiment has in a project."""
        return item.label if project == item.project else self.shares(item.id).get(project, item.label)

    def share(self, item: str, project: str, label: str) -> None:
        """Share a subject or an experiment into another project, with a label that it has only there."""
        with self.store.write() as db:
            db.execute("INSERT INTO shares VALUES (?, ?, ?)", (item, project, label))

    def unshare(self, item: str, project: str) -> None:
        """End a share, also of the object's experiments, assessors and scans."""
        with self.store.write() as db:
            db.execute(_UNSHARE_SQL, {"project": project, "item": item})

    def shares(self, item: str) -> dict[str, str]:
        """Return the label of an object in each project that it is shared into."""
        rows = self.store.all("SELECT project, label FROM shares WHERE item = ?", (item,))
        return {row["project"]: row["label"] for row in rows}

    def seed_sessions(self, project: str, sessions: int, scans: int, resources: Iterable[str] = ("DICOM",)) -> None:
        """Make many sessions in one transaction. They have metadata, but no files.

        Raises
        ------
        LookupError
            If there is no such project.
        """
        if self.project(project) is None:
            raise LookupError(f"there is no project {project!r} to seed; make it first: create_project({project!r})")
        seed_sessions(self.store, project, sessions, scans, tuple(resources), timestamp())


# As a database sorts whose language is English: small and capital letters together.
PROJECTS_SQL = "SELECT * FROM projects ORDER BY id COLLATE NOCASE, id"
_PROJECT_SQL = (
    "SELECT * FROM projects WHERE id = :name"
    " UNION ALL SELECT projects.* FROM projects, json_each(projects.fields, '$.aliases/alias') AS alias"
    " WHERE json_extract(alias.value, '$.alias') = :name LIMIT 1"
)
_SCAN_VALUES_SQL = (
    "SELECT DISTINCT experiments.project, json_extract(scans.fields, ?) AS value FROM scans"
    " JOIN experiments ON experiments.id = scans.experiment WHERE value IS NOT NULL"
)
_UNSHARE_SQL = (
    "WITH held AS (SELECT id FROM experiments WHERE subject_id = :item OR session_id = :item OR id = :item"
    " OR session_id IN (SELECT id FROM experiments WHERE subject_id = :item))"
    " DELETE FROM shares WHERE project = :project AND (item = :item OR item IN held"
    " OR item IN (SELECT 'scan:' || pk FROM scans WHERE experiment IN held))"
)
_COUNTS_SQL = (
    "SELECT xsi_type, COUNT(*) AS count FROM experiments GROUP BY xsi_type"
    " UNION ALL SELECT 'xnat:projectData', COUNT(*) FROM projects"
    " UNION ALL SELECT 'xnat:subjectData', COUNT(*) FROM subjects"
)


def _of_both(sql: str) -> dict[str, str]:
    """Return the statement for each of the two tables whose objects have a label and can be shared."""
    return {kind: sql.replace("KIND", kind) for kind in ("subjects", "experiments")}


_ID_SQL = _of_both("SELECT * FROM KIND WHERE id = :name")
_NAME_SQL = _of_both(
    "SELECT * FROM KIND WHERE project = :project AND (id = :name OR label = :name)"
    " UNION ALL SELECT KIND.* FROM shares JOIN KIND ON KIND.id = shares.item"
    " WHERE shares.project = :project AND (KIND.id = :name OR shares.label = :name) LIMIT 1"
)
_LABEL_SQL = _of_both(
    "SELECT id FROM KIND WHERE project = :project AND label = :name"
    " UNION ALL SELECT KIND.id FROM shares JOIN KIND ON KIND.id = shares.item"
    " WHERE shares.project = :project AND shares.label = :name LIMIT 1"
)


def _lookup(kind: str, name: str, project: str | None) -> tuple[str, dict[str, str]]:
    """Return the SQL, and its arguments, that finds a subject or experiment by ID or, in a project, also by label."""
    if project is None:
        return _ID_SQL[kind], {"name": name}
    return _NAME_SQL[kind], {"name": name, "project": project}


def _there(found: T | None) -> T:
    if found is None:
        raise LookupError("the new object is gone: another request deleted it")
    return found


def timestamp() -> str:
    """Return the current time in the format of XNAT's tables."""
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
