"""Errors as MONAI Label and its clients want them.

MONAI Label has no handler for a datastore's exceptions: whatever is raised reaches the viewer as a bare 500. An error
that is a FastAPI ``HTTPException`` as well arrives with its status and its reason.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelError,
    MONAILabelException,
)

from monailabel_xnat import errors

# The first that fits; XNAT's own refusal of our login is not the annotator's 401.
_STATUSES: tuple[tuple[type[errors.XNATDatastoreError], int], ...] = (
    (errors.UnknownImageError, 404),
    (errors.UnknownLabelError, 404),
    (errors.NotInArchiveError, 404),
    (errors.NoImageError, 404),
    (errors.InvalidIdError, 400),
    (errors.AmbiguousNameError, 409),
    (errors.ImageConflictError, 409),
    (errors.ImageError, 422),
    (errors.UnreadDrawingError, 503),
    (errors.LabelError, 422),
    (errors.LabelNotUploadedError, 503),
    (errors.ReadOnlyError, 403),
    (errors.AccessDeniedError, 403),
    (errors.ServerTimeoutError, 504),
    (errors.ServerError, 502),
    (errors.CacheError, 507),
)
_MONAI_LABEL_KINDS: dict[type[errors.XNATDatastoreError], type[MONAILabelException]] = {
    errors.UnknownImageError: ImageNotFoundException,
    errors.UnknownLabelError: LabelNotFoundException,
}


class _ErrorsForClients:
    """The context of :func:`errors_for_clients`: a class, for a strategy enters it for each of 20000 images."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, errors.XNATDatastoreError) and not isinstance(error, HTTPException):
            raise _as_http(error) from error


_merged: dict[type[errors.XNATDatastoreError], type[errors.XNATDatastoreError]] = {}
_errors_for_clients = _ErrorsForClients()


def errors_for_clients() -> _ErrorsForClients:
    """Raise our errors so that they are MONAI Label's and FastAPI's as well."""
    return _errors_for_clients


def _as_http(error: errors.XNATDatastoreError) -> errors.XNATDatastoreError:
    kind = type(error)
    merged = _merged.get(kind) or _merged.setdefault(kind, _merged_class(kind))
    result = errors.restored(merged, error.args, error.__dict__)
    _complete(result)
    return result


def _complete(error: errors.XNATDatastoreError) -> None:
    """Set what HTTPException's own __init__ would set; ours has other parameters."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)
    error.__dict__.update(status_code=status, detail=str(error), headers=None)
    if isinstance(error, MONAILabelException):
        error.error, error.msg = MONAILabelError.APP_ERROR, str(error)


def _merged_class(kind: type[errors.XNATDatastoreError]) -> type[errors.XNATDatastoreError]:
    extra = [_MONAI_LABEL_KINDS[kind]] if kind in _MONAI_LABEL_KINDS else []

    def __init__(self: errors.XNATDatastoreError, message: str, **more: Any) -> None:  # noqa: N807 - that of a class
        kind.__init__(self, message, **more)
        _complete(self)

    def __reduce__(self: errors.XNATDatastoreError) -> tuple[Any, ...]:  # noqa: N807
        return _merged_again, (kind, self.args, self.__dict__)

    body = {"__doc__": kind.__doc__, "__module__": __name__, "__init__": __init__, "__reduce__": __reduce__}
    return type(kind.__name__, (kind, *extra, HTTPException), body)


def _merged_again(
    kind: type[errors.XNATDatastoreError], args: tuple[Any, ...], fields: dict[str, Any]
) -> errors.XNATDatastoreError:
    """Make an error anew that was pickled."""
    return _as_http(errors.restored(kind, args, fields))


# Under their names in this module, for torch's data loader pickles the class of an error beside what it says.
for _kind in [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.XNATDatastoreError)
]:
    globals()[_kind.__name__] = _merged[_kind] = _merged_class(_kind)
