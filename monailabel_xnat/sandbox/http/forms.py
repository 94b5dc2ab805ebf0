"""The files that a request brings: its body, or those of a form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, parse_form

from monailabel_xnat.sandbox.http.replies import HTTPError
from monailabel_xnat.sandbox.http.request import Request

MULTIPART = "multipart/form-data"


@contextmanager
def form_files(request: Request, name: str = "") -> Iterator[list[tuple[str, BinaryIO]]]:
    """Return name and content of each file of a request.

    Parameters
    ----------
    request
        The request.
    name
        What the file is called, whatever the form calls it.

    Raises
    ------
    HTTPError
        400 for a damaged form, or one without a file.
    """
    if request.content_type != MULTIPART:
        yield [(name, request.body)]
        return
    files: list[File] = []
    header = {"Content-Type": request.headers["content-type"].encode("latin-1")}
    with ExitStack() as stack:
        try:
            parse_form(header, request.body, None, files.append)
        except FormParserError as error:
            raise HTTPError(400, f"The form is damaged: {error}") from error
        found = []
        for file in files:
            stack.callback(file.close)
            file.file_object.seek(0)
            own_name = (file.file_name or b"").decode("utf-8", "replace")
            found.append((name or own_name, cast("BinaryIO", file.file_object)))
        if not found:
            raise HTTPError(400, "The form has no file.")
        yield found
