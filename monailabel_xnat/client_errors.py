"""Errors as MONAI Label and its clients want them.

MONAI Label has no handler for a datastore's exceptions: whatever is raised reaches the viewer as a bare 500. An error
that is a FastAPI ``HTTPException`` as well arrives with its status and its reason.
"""

from __future__ import annotations

from types import TracebackType

from fastapi import HTTPException
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

from monailabel_xnat.errors import (
    AccessDeniedError,
    AmbiguousNameError,
    CacheError,
    ImageConflictError,
    ImageError,
    InvalidIdError,
    LabelError,
    LabelNotUploadedError,
    NoImageError,
    NotInArchiveError,
    ReadOnlyError,
    ServerError,
    ServerTimeoutError,
    UnknownImageError,
    UnknownLabelError,
    UnreadDrawingError,
    XNATDatastoreError,
)

# The first that fits; XNAT's own refusal of our login is not the annotator's 401.
_STATUSES: tuple[tuple[type[XNATDatastoreError], int], ...] = (
    (UnknownImageError, 404),
    (UnknownLabelError, 404),
    (NotInArchiveError, 404),
    (NoImageError, 404),
    (InvalidIdError, 400),
    (AmbiguousNameError, 409),
    (ImageConflictError, 409),
    (ImageError, 422),
    (UnreadDrawingError, 503),
    (LabelError, 422),
    (LabelNotUploadedError, 503),
    (ReadOnlyError, 403),
    (AccessDeniedError, 403),
    (ServerTimeoutError, 504),
    (ServerError, 502),
    (CacheError, 507),
)
_MONAI_LABEL_KINDS: dict[type[XNATDatastoreError], type[MONAILabelException]] = {
    UnknownImageError: ImageNotFoundException,
    UnknownLabelError: LabelNotFoundException,
}


class _ErrorsForClients:
    """The context of :func:`errors_for_clients`: a class, for a strategy enters it for each of 20000 images."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, XNATDatastoreError) and not isinstance(error, HTTPException):
            raise _as_http(error) from error


_merged: dict[type[XNATDatastoreError], type[XNATDatastoreError]] = {}
_errors_for_clients = _ErrorsForClients()


def errors_for_clients() -> _ErrorsForClients:
    """Raise our errors so that they are MONAI Label's and FastAPI's as well."""
    return _errors_for_clients


def _as_http(error: XNATDatastoreError) -> XNATDatastoreError:
    kind = type(error)
    merged = _merged.get(kind) or _merged.setdefault(kind, _merged_class(kind))
    # Neither class's __init__ takes the other's parameters, and Python lets only the own __new__ of a class that is
    # laid out like OSError make it.
    made_by = OSError if issubclass(merged, OSError) else Exception
    result = made_by.__new__(merged, error.message)
    result.args = error.args
    result.__dict__.update(error.__dict__)
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    # What HTTPException's own __init__ would set; ours has other parameters.
    result.__dict__.update(status_code=status, detail=str(error), headers=None)
    if isinstance(result, MONAILabelException):
        result.error, result.msg = MONAILabelError.APP_ERROR, str(error)
    return result


def _merged_class(kind: type[XNATDatastoreError]) -> type[XNATDatastoreError]:
    extra = [_MONAI_LABEL_KINDS[kind]] if kind in _MONAI_LABEL_KINDS else []
    return type(kind.__name__, (kind, *extra, HTTPException), {"__doc__": kind.__doc__, "__module__": kind.__module__})
