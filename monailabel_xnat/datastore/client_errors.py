"""Errors in the form that MONAI Label and its clients need.

MONAI Label has no handler for the exceptions of a datastore: each of them reaches the viewer as status 500 without a
reason. If an error is also a FastAPI ``HTTPException``, the viewer gets its status and its reason.
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

# The status of each error: the first class that fits counts. There is no 401: if XNAT refuses the login of the server,
# the annotator's login is not wrong.
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
    """The context of :func:`errors_for_clients`.

    It is a class because that is faster than a generator: a strategy enters it for each of 20000 images.
    """

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
    """Return a context in which our errors are raised as errors of MONAI Label and FastAPI as well."""
    return _errors_for_clients


def _as_http(error: errors.XNATDatastoreError) -> errors.XNATDatastoreError:
    kind = type(error)
    merged = _merged.get(kind) or _merged.setdefault(kind, _merged_class(kind))
    result = errors.restored(merged, error.args, error.__dict__)
    _complete(result)
    return result


def _complete(error: errors.XNATDatastoreError) -> None:
    """Set the attributes that HTTPException's own __init__ would set; it is not called, as it has other parameters."""
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
    """Return an error that was pickled."""
    return _as_http(errors.restored(kind, args, fields))


# Each class gets its name in this module: torch's data loader pickles the class of an error, which is found by name.
for _kind in [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.XNATDatastoreError)
]:
    globals()[_kind.__name__] = _merged[_kind] = _merged_class(_kind)
