"""Lists of experiments with columns of their scans and resources joined in (QueryOrganizer)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import translate
from typing import Any, Callable, NamedTuple

from monailabel_xnat.sandbox.archive import Archive
from monailabel_xnat.sandbox.datatypes import (
    ABSTRACT,
    EXPERIMENT,
    IMAGE_ASSESSOR,
    IMAGE_SCAN,
    IMAGE_SESSION,
    SUBJECT_ASSESSOR,
    DataTypes,
)

# Shortcut to the path it stands for; the path, asked in any spelling, comes back under the shortcut.
SHORTCUTS: dict[str, str] = {
    "ID": "xnat:experimentdata/id",
    "label": "xnat:experimentdata/label",
    "project": "xnat:experimentdata/project",
    "xsiType": "xnat:experimentdata/extension_item/element_name",
    "date": "xnat:experimentdata/date",
    "time": "xnat:experimentdata/time",
    "note": "xnat:experimentdata/note",
    "insert_date": "xnat:experimentdata/meta/insert_date",
    "insert_user": "xnat:experimentdata/meta/insert_user/login",
    "last_modified": "xnat:experimentdata/meta/last_modified",
    "subject_ID": "xnat:subjectassessordata/subject_id",
    "subject_label": "xnat:subjectdata/label",
    "subject_project": "xnat:subjectdata/project",
    "session_ID": "xnat:imagesessiondata/id",
    "session_label": "xnat:imagesessiondata/label",
    "session_project": "xnat:imagesessiondata/project",
    "modality": "xnat:imagesessiondata/modality",
    "session_type": "xnat:imagesessiondata/session_type",
    "UID": "xnat:imagesessiondata/uid",
    "scanner": "xnat:imagesessiondata/scanner",
    "operator": "xnat:imagesessiondata/operator",
    "dcmPatientId": "xnat:imagesessiondata/dcmpatientid",
    "dcmAccessionNumber": "xnat:imagesessiondata/dcmaccessionnumber",
}
_BY_PATH = {path: name for name, path in SHORTCUTS.items()}
_BY_PATH.update({"studyinstanceuid": "UID"})
_LOWER = {name.lower(): name for name in SHORTCUTS}
_META = {
    "meta/insert_date": "insert_date",
    "meta/insert_user/login": "insert_user",
    "meta/last_modified": "last_modified",
}
_DEFAULTS = ("ID", "project", "date", "xsiType", "label", "insert_date")


class _Row(NamedTuple):
    """One combination of experiment, scan and resource, each as lower-cased fields."""

    experiment: Mapping[str, str]
    scan: Mapping[str, str]
    resource: Mapping[str, str]
    share: str


Getter = Callable[[_Row], str]


def experiment_rows(
    archive: Archive,
    query: Mapping[str, str],
    readable: Callable[[str], bool],
    *,
    project: str | None = None,
    subject: str | None = None,
    session: str | None = None,
) -> list[dict[str, str]]:
    """List experiments: of the site, of a project with what is shared into it, of a subject, or assessors of a session.

    Parameters
    ----------
    archive
        Where to look.
    query
        ``xsiType``, ``columns`` and filters as XNAT takes them.
    readable
        Tells whether the data of a project may be read.
    project, subject, session
        What the list is restricted to.
    """
    types = archive.types
    default = IMAGE_ASSESSOR if session else SUBJECT_ASSESSOR if project or subject else EXPERIMENT
    root = (
        types.canonical(query["xsiType"]) or query["xsiType"] if query.get("xsiType") else _root(types, query, default)
    )
    names = _asked(query, root)
    columns = [(_key(name), _getter(types, name)) for name in names]
    filters = _filters(types, query)
    join_scans = any(_is_scan(types, name) for name in [*names, *(name for name, _ in filters)])
    join_resources = join_scans and any("/file/" in name.lower() for name in names)
    join_shares = any("sharing/share" in name.lower() for name in names)
    rows = []
    checks = [(_getter(types, name), test) for name, test in filters if "sharing/share" not in name.lower()]
    shared_into = next((query[name] for name in query if "sharing/share/project" in name.lower()), None)
    for row in _rows(
        archive, root, readable, project, subject, session, shared_into, join_scans, join_resources, join_shares
    ):
        if all(test(getter(row)) for getter, test in checks):
            values = {key: getter(row) for key, getter in columns}
            values["URI"] = f"/data/experiments/{row.experiment['id']}"
            rows.append(values)
    return rows if join_scans else _unique(rows)


def _unique(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return list({tuple(sorted(row.items())): row for row in rows}.values())


def _root(types: DataTypes, query: Mapping[str, str], default: str) -> str:
    """Give the type of a column or filter where it extends the list's own root, else that root."""
    names = [*query.get("columns", "").split(","), *query]
    for name in names:
        kind = types.canonical(name.partition("/")[0]) if "/" in name else None
        if kind and kind != default and types.is_a(kind, default):
            return kind
    return default


def _asked(query: Mapping[str, str], root: str) -> list[str]:
    text = query.get("columns", "")
    names = [name.strip() for name in text.split(",") if name.strip() and name.strip() != "DEFAULT"]
    known = [name for name in names if "/" in name or name.lower() in _LOWER or name.lower() in _BY_PATH]
    asked = known or list(_DEFAULTS)
    if not known and root != EXPERIMENT:
        if _is_assessor_name(root) or root == IMAGE_ASSESSOR:
            asked += ["session_ID", "session_label"]
        elif root != SUBJECT_ASSESSOR:
            asked += ["subject_ID", "subject_label"]
    if root in ABSTRACT:
        asked += ["xsiType", "project"]
    return [*dict.fromkeys([*asked, f"{root.lower()}/id"])]


def _is_assessor_name(root: str) -> bool:
    return root.startswith("icr:")


def _key(name: str) -> str:
    lower = name.lower()
    if lower in _LOWER:
        return _LOWER[lower]
    return _BY_PATH.get(lower, lower)


def _is_scan(types: DataTypes, name: str) -> bool:
    kind, _, path = name.lower().partition("/")
    return types.is_a(kind, IMAGE_SCAN) or path.startswith("scans/scan/")


def _getter(types: DataTypes, name: str) -> Getter:
    lower = SHORTCUTS.get(_LOWER.get(name.lower(), ""), name.lower())
    lower = SHORTCUTS[_BY_PATH[lower]] if lower in _BY_PATH else lower
    kind, _, path = lower.partition("/")
    if path.startswith("scans/scan/"):
        kind, path = IMAGE_SCAN.lower(), path[len("scans/scan/") :]
    if types.is_a(kind, IMAGE_SCAN):
        if path.startswith("file/"):
            column = path[len("file/") :]
            return lambda row: row.resource.get(column, "")
        only = None if kind == IMAGE_SCAN.lower() else kind
        return lambda row: row.scan.get(path, "") if only in (None, row.scan.get("xsitype", "").lower()) else ""
    if path == "sharing/share/project":
        return lambda row: row.share
    if kind == "xnat:subjectdata":
        return lambda row: row.experiment.get(f"subject_{path}", "")
    if kind == IMAGE_SESSION.lower() and path in ("id", "label", "project"):
        return lambda row: row.experiment.get(f"session_{path}") or row.experiment.get(path, "")
    path = "xsitype" if path == "extension_item/element_name" else _META.get(path, path)
    return lambda row: row.experiment.get(path, "")


Test = Callable[[str], bool]


def _filters(types: DataTypes, query: Mapping[str, str]) -> list[tuple[str, Test]]:
    found = []
    for name, text in query.items():
        if name in ("xsiType", "columns", "format"):
            continue
        if "/" in name or name.lower() in _LOWER:
            found.append((name, _test(text)))
    return found


def _test(text: str) -> Test:
    """Make the test of a filter: commas mean or, ``*`` and ``%`` anything, ``lo-hi`` a range of numbers."""
    patterns = [re.compile(translate(part.replace("%", "*")), re.IGNORECASE) for part in text.split(",")]
    bounds = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text)

    def test(value: str) -> bool:
        if any(pattern.fullmatch(value) for pattern in patterns):
            return True
        return bool(
            bounds and re.fullmatch(r"\d+(\.\d+)?", value) and float(bounds[1]) <= float(value) <= float(bounds[2])
        )

    return test


def _rows(
    archive: Archive,
    root: str,
    readable: Callable[[str], bool],
    project: str | None,
    subject: str | None,
    session: str | None,
    shared_into: str | None,
    join_scans: bool,
    join_resources: bool,
    join_shares: bool,
) -> Iterator[_Row]:
    kinds = set(archive.types.family(root)) | {root}
    shares: dict[str, dict[str, str]] = {}
    for row in archive.store.all("SELECT item, project, label FROM shares"):
        shares.setdefault(row["item"], {})[row["project"]] = row["label"]
    scans = _scans(archive) if join_scans else {}
    resources = _scan_resources(archive) if join_resources else {}
    for row in _experiments(archive):
        into = shares.get(row["id"], {})
        if row["xsi_type"] not in kinds or (session and row["session_id"] != session):
            continue
        if session is None and root in (SUBJECT_ASSESSOR,) and row["session_id"]:
            continue
        if (project and row["project"] != project and project not in into) or (
            subject and row["subject_id"] != subject
        ):
            continue
        if shared_into and not set(shared_into.split(",")) & set(into):
            continue
        if not readable(row["project"]) and not any(readable(other) for other in into):
            continue
        experiment = _experiment(row, into.get(project or "", ""))
        for scan in scans.get(row["id"], [{}]) if join_scans else [{}]:
            for resource in resources.get(scan.get("pk", ""), [{}]) if join_resources else [{}]:
                for share in (list(into) or [""]) if join_shares else [""]:
                    yield _Row(experiment, scan, resource, share)


def _experiments(archive: Archive) -> Sequence[Any]:
    return archive.store.all(
        "SELECT experiments.*, subjects.label AS s_label, subjects.project AS s_project,"
        " sessions.label AS e_label, sessions.project AS e_project"
        " FROM experiments LEFT JOIN subjects ON subjects.id = experiments.subject_id"
        " LEFT JOIN experiments AS sessions ON sessions.id = experiments.session_id ORDER BY experiments.id"
    )


def _experiment(row: Any, shared_label: str) -> dict[str, str]:
    values = {key.lower(): _text(value) for key, value in json.loads(row["fields"]).items()}
    values.update(
        {
            "id": row["id"],
            "label": shared_label or row["label"],
            "project": row["project"],
            "xsitype": row["xsi_type"],
            "insert_date": row["insert_date"],
            "insert_user": row["insert_user"],
            "last_modified": row["last_modified"],
            "subject_id": row["subject_id"] or "",
            "subject_label": row["s_label"] or "",
            "subject_project": row["s_project"] or "",
        }
    )
    if row["session_id"]:
        values.update(
            session_id=row["session_id"], session_label=row["e_label"] or "", session_project=row["e_project"] or ""
        )
    return values


def _scans(archive: Archive) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in archive.store.all("SELECT * FROM scans ORDER BY pk"):
        values = {key.lower(): _text(value) for key, value in json.loads(row["fields"]).items()}
        values.update(id=row["id"], xsitype=row["xsi_type"], pk=str(row["pk"]))
        found.setdefault(row["experiment"], []).append(values)
    return found


def _scan_resources(archive: Archive) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in archive.store.all("SELECT * FROM resources WHERE kind = 'scan' ORDER BY id"):
        values = {key: _text(row[key]) for key in ("label", "format", "content", "file_count", "file_size")}
        found.setdefault(row["parent"], []).append(values)
    return found


def _text(value: Any) -> str:
    if value is None or isinstance(value, (list, dict)):
        return ""
    return str(value)
