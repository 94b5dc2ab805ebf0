"""XNAT's lists: tables of texts, written as JSON, CSV or XML (XFTTable)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from monailabel_xnat.sandbox.replies import Reply

Row = dict[str, str]


def answer(
    rows: Sequence[Row],
    query: Mapping[str, str],
    title: str = "",
    columns: list[dict[str, str]] | None = None,
) -> Reply:
    """Write a table in the asked format; every value is a text.

    Parameters
    ----------
    rows
        The rows, all with the same keys.
    query
        Query parameters: ``format``, ``sortBy``, ``sortOrder``, ``limit``, ``offset``.
    title
        Left out where empty, as XNAT does.
    columns
        The extra ``Columns`` entry of file tables.
    """
    rows, paged = _page(_sorted(rows, query), query)
    kind = query.get("format", "json")
    if kind == "csv":
        return Reply(_csv(rows).encode(), media_type="text/csv")
    if kind == "xml":
        return Reply(_xml(rows).encode(), media_type="text/xml; charset=UTF-8")
    result: dict[str, Any] = {"Result": rows}
    if not paged:
        result["totalRecords"] = str(len(rows))
    if title:
        result["title"] = title
    if columns is not None:
        result["Columns"] = columns
    body = json.dumps({"ResultSet": result}, separators=(",", ":"))
    return Reply(body.encode(), media_type="application/json; charset=UTF-8")


def _sorted(rows: Sequence[Row], query: Mapping[str, str]) -> list[Row]:
    ordered = list(rows)
    for column in reversed([name for name in query.get("sortBy", "").split(",") if name]):
        ordered.sort(key=lambda row: row.get(column, ""), reverse=query.get("sortOrder", "").upper() == "DESC")
    return ordered


def _page(rows: list[Row], query: Mapping[str, str]) -> Any:
    if "limit" not in query and "offset" not in query:
        return rows, False
    offset = int(query.get("offset") or 0)
    limit = query.get("limit", "100")
    return rows[offset:] if limit == "*" else rows[offset : offset + int(limit or 100)], True


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    names = list(rows[0]) if rows else []
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _xml(rows: Sequence[Row]) -> str:
    names = list(rows[0]) if rows else []
    columns = "".join(f"<column>{escape(name)}</column>" for name in names)
    body = "".join("<row>" + "".join(f"<cell>{escape(row[name])}</cell>" for name in names) + "</row>" for row in rows)
    return f"<ResultSet><results><columns>{columns}</columns><rows>{body}</rows></results></ResultSet>"
