"""File PUT with its odd rules (FileList, RequestUtil, ResourceModifierA)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import BinaryIO

from monailabel_xnat.sandbox.archive.holders import Holder
from monailabel_xnat.sandbox.archive.model import Resource
from monailabel_xnat.sandbox.archive.resources import BEFORE_ALL, ConcurrentModificationError, Incoming, Resources
from monailabel_xnat.sandbox.archive.staging import checked_path
from monailabel_xnat.sandbox.http.forms import MULTIPART, form_files
from monailabel_xnat.sandbox.http.replies import HTTPError, Reply, html, text
from monailabel_xnat.sandbox.http.request import Request
from monailabel_xnat.sandbox.http.unpacking import ARCHIVE_SUFFIXES, unpack

_UPLOAD_TYPES = re.compile(
    r"application/(octet-stream|zip|x-zip-compressed|dicom|x-tar|tar|gzip|x-gzip|x-compressed|x-gtar|pdf|rtf|msword"
    r"|vnd\..*|excel|powerpoint)|text/(plain|xml|csv|html)|image/.*|video/.*"
)
_RESOURCE_VALUES = ("format", "content", "description", "tags")


class Uploads:
    """Stores the files of requests."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def put(self, request: Request, holder: Holder, label: str, path: str) -> Reply:
        """Store what a request brings; its right to write is known.

        Returns
        -------
        Reply
            200: empty, or with the names that were there already and stay as they are.

        Raises
        ------
        HTTPError
            400 for a body that is no file to XNAT or a path that leaves the resource, 403 for an unknown resource
            number, 406 for a form in the body, 500 for a body without length, a damaged archive or another writer.
        """
        _require_file(request)
        incoming: list[Incoming] = []
        try:
            self._receive(request, path, incoming)
            return self._store(request, self._resource(request, holder, label), incoming)
        except ConcurrentModificationError as error:
            raise HTTPError(500, f"ConcurrentModificationException: {error}") from error
        except ValueError as error:
            raise HTTPError(500 if request.flag("extract") else 400, str(error)) from error
        except OSError as error:  # a folder in the place of a file, a name that is too long, a full disk
            raise HTTPError(500, f"{type(error).__name__}: {error.strerror}") from error
        finally:
            for item in incoming:
                self._resources.staging.drop(item.staged)

    def _resource(self, request: Request, holder: Holder, label: str) -> Resource:
        """Find the resource as it was when the request arrived, or make it: two who do that at once make two."""
        for found in self._resources.of(holder.owner):
            known = self._resources.changes.existed(found.id, request.began)
            if known and (str(found.id) if label.isdigit() else found.label) == label:
                return found
        if label.isdigit():
            raise HTTPError(403)
        values = {name: request.query[name] for name in ("format", "content") if name in request.query}
        return self._resources.create(holder.owner, label, **values)

    def _receive(self, request: Request, path: str, incoming: list[Incoming]) -> None:
        values = {name: request.query.get(name, "") for name in _RESOURCE_VALUES}

        def take(name: str, content: BinaryIO) -> None:
            incoming.append(Incoming(name, self._resources.stage(content), values))

        with form_files(request, path) as files:
            for name, content in files:
                if request.flag("extract") and name.lower().endswith(ARCHIVE_SUFFIXES):
                    unpack(content, name.rpartition("/")[2], take)
                else:
                    take(checked_path(name), content)

    def _store(self, request: Request, resource: Resource, incoming: Sequence[Incoming]) -> Reply:
        duplicates: list[str] = []
        if not request.flag("overwrite"):
            # The disk counts, not the catalog: also what a failed writer left there is in the way.
            folder = self._resources.folder(resource)
            duplicates = [item.path for item in incoming if (folder / item.path).exists()]
        wanted = [item for item in incoming if item.path not in duplicates]
        if wanted:
            stats = request.query.get("update-stats", "true").lower() not in ("false", "0")
            login = request.user.login
            since = BEFORE_ALL if request.is_stale else request.began
            self._resources.put(resource, wanted, login, since=since, update_stats=stats)
        return html(json.dumps({"duplicates": duplicates})) if duplicates else text()


def _require_file(request: Request) -> None:
    """Refuse a body that XNAT does not take for a file."""
    form, in_body = request.content_type == MULTIPART, request.flag("inbody")
    if form and in_body:
        raise HTTPError(406)
    if not (form or in_body or _UPLOAD_TYPES.fullmatch(request.content_type)):
        raise HTTPError(
            400,
            "You tried to PUT a payload without inbody=true and without a Content-Type that stands for a file: "
            f"{request.content_type or 'none'}.",
        )
    if not request.length and request.content_type != "application/zip":
        raise HTTPError(500, "The body has no length.")
