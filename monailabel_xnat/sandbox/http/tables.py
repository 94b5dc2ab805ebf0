"""XNAT's lists as tables of texts, written as JSON, CSV, XML or HTML (XFTTable)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as escape_html
from itertools import islice
from typing import TypeVar
from xml.sax.saxutils import escape

from monailabel_xnat.sandbox.http.messages import HTTPError, Reply, Request, html

Row = dict[str, str]
T = TypeVar("T")
_DEFAULT_LIMIT = 100
_FORMATS = ("json", "html", "xml", "csv")


@dataclass(frozen=True)
class Page:
    """The part of a list that ``limit`` and ``offset`` ask for. One of the two is enough to turn paging on."""

    offset: int = 0
    limit: int | None = None
    is_on: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Page:
        """Return the page that the parameters ask for; ``*`` stands for no limit or no offset.

        Raises
        ------
        HTTPError
            400 if a parameter is not a number.
        """
        if "limit" not in query and "offset" not in query:
            return cls()
        limit, offset = query.get("limit") or str(_DEFAULT_LIMIT), query.get("offset") or "0"
        try:
            return cls(0 if offset == "*" else int(offset), None if limit == "*" else int(limit), True)
        except ValueError:
            raise HTTPError(400, "limit and offset are numbers") from None

    def cut(self, rows: Iterable[T]) -> list[T]:
        """Return the rows of the page."""
        stop = None if self.limit is None else self.offset + max(0, self.limit)
        return list(islice(rows, max(0, self.offset), stop))


@dataclass(frozen=True)
class Table:
    """A table.

    Parameters
    ----------
    names
        The names of the columns.
    rows
        One text for each column.
    title
        The title of the table. If it is empty, it is left out, as in XNAT.
    is_page
        Whether this is only a part of a list. Then ``totalRecords`` is left out.
    columns
        The extra ``Columns`` entry of file tables and of searches.
    extra
        Further entries beside the rows.
    """

    names: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    is_page: bool = False
    columns: Sequence[Mapping[str, str]] | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def answer(self, request: Request) -> Reply:
        """Answer with the table in the format that a request asks for or accepts."""
        return self.reply(request.format(_FORMATS), request.query)

    def reply(self, kind: str, query: Mapping[str, str]) -> Reply:
        """Return the table as ``json``, ``csv``, ``xml`` or ``html``, sorted by ``sortBy`` and ``sortOrder``."""
        rows = _sorted(self.rows, query)
        if kind == "csv":
            return Reply(_csv(self.names, rows).encode(), media_type="text/csv")
        if kind == "xml":
            return Reply(_xml(self.names, rows, self.title).encode(), media_type="text/xml; charset=UTF-8")
        if kind == "html":
            return html(_html(self.names, rows))
        return Reply(self._json(rows), media_type="application/json; charset=UTF-8")

    def _json(self, rows: Sequence[Row]) -> bytes:
        result: dict[str, object] = {"Result": rows, **self.extra}
        if not self.is_page:
            result["totalRecords"] = str(len(rows))
        if self.title:
            result["title"] = self.title
        if self.columns is not None:
            result["Columns"] = self.columns
        return json.dumps({"ResultSet": result}, separators=(",", ":"), ensure_ascii=False).encode()


def answer(
    rows: Sequence[Row],
    query: Mapping[str, str],
    title: str = "",
    columns: Sequence[Mapping[str, str]] | None = None,
) -> Reply:
    """Answer with rows that all have the same keys, in the format that the query asks for."""
    names = list(rows[0]) if rows else []
    return Table(names, rows, title, columns=columns).reply(query.get("format", "json"), query)


def _sorted(rows: Sequence[Row], query: Mapping[str, str]) -> Sequence[Row]:
    columns = [name for name in query.get("sortBy", "").split(",") if name]
    if not columns:
        return rows
    is_descending = query.get("sortOrder", "").upper() == "DESC"
    return sorted(rows, key=lambda row: [row.get(column, "") for column in columns], reverse=is_descending)


def _csv(names: Sequence[str], rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _xml(names: Sequence[str], rows: Sequence[Row], title: str) -> str:
    columns = "".join(f"<column>{escape(name)}</column>" for name in names)
    body = "".join("<row>" + "".join(f"<cell>{escape(row[name])}</cell>" for name in names) + "</row>" for row in rows)
    head = f' title="{escape(title)}"' if title else ""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ResultSet{head} totalRecords="{len(rows)}">'
        f"<results><columns>{columns}</columns><rows>{body}</rows></results></ResultSet>"
    )


def _html(names: Sequence[str], rows: Sequence[Row]) -> str:
    head = "".join(f"<th>{escape_html(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape_html(row[name])}</td>" for name in names) + "</tr>" for row in rows)
    return f"<html><body><table><tr>{head}</tr>{body}</table></body></html>"
