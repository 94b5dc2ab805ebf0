"""The errors that this library raises.

::

    XNATDatastoreError
    ├── SettingsError            (ValueError)         a setting is missing or makes no sense
    │   └── UnknownSettingError  (TypeError)          there is no such setting, as for any wrong keyword
    ├── InvalidIdError           (ValueError)         an image or label id has the wrong form
    ├── ServerError              (ConnectionError)    XNAT cannot be reached or answers with a failure
    │   ├── LoginError           (PermissionError)    XNAT does not know this user or password
    │   ├── AccessDeniedError    (PermissionError)    this user may not do that
    │   ├── NotInArchiveError    (FileNotFoundError)  XNAT has no such object, or this user may not see it
    │   ├── ServerTimeoutError   (TimeoutError)       XNAT did not answer in time
    │   └── TransferError        (OSError)            bytes were lost or changed on the way
    │       └── MalformedFileError                    a file that we stored in XNAT does not have the expected form
    ├── ImageError               (ValueError)
    │   ├── NoImageError         (FileNotFoundError)  a scan holds nothing that can be read as an image
    │   ├── ImageConversionError                      the content of a scan is not one volume
    │   └── ImageConflictError                        another image already has that name or is in that scan
    ├── LabelError               (ValueError)
    │   ├── LabelFileError                            a label file is missing, empty or not a label map
    │   ├── LabelGeometryError                        a label does not lie on the grid of its image
    │   └── UnreadDrawingError                        a drawing that may be the newest label cannot be read
    ├── UnknownImageError        (KeyError)           the datastore lists no such image
    ├── AmbiguousNameError       (LookupError)        several images have the name
    ├── UnknownLabelError        (KeyError)           the image has no such label
    ├── LabelNotUploadedError    (OSError)            a label is safe on disk, but not yet in XNAT
    ├── ReadOnlyError            (PermissionError)    the datastore was opened read-only
    │   └── DryRunError                               in a dry run nothing is sent, and nothing is kept
    └── CacheError               (OSError)            the cache folder cannot be used

Every error has a ``hint``: what the reader can do next. Messages and hints never contain secrets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class XNATDatastoreError(Exception):
    """Base class of all errors of this library.

    Parameters
    ----------
    message : str
        What was wrong, with names and numbers.
    hint : str
        What to do about it.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuild the error from its fields, without a call of __init__: subclasses have different parameters there.
        return restored, (type(self), self.args, self.__dict__)


class SettingsError(XNATDatastoreError, ValueError):
    """A setting is missing or makes no sense."""


class UnknownSettingError(SettingsError, TypeError):
    """There is no setting with the name of this keyword or option."""


class InvalidIdError(XNATDatastoreError, ValueError):
    """An image or label id has the wrong form."""


class ServerError(XNATDatastoreError, ConnectionError):
    """XNAT cannot be reached or answers with a failure.

    Parameters
    ----------
    message : str
        What was wrong.
    hint : str
        What to do about it.
    url : str
        The address asked, without user name or password.
    status : int or None
        The HTTP status; None if there was no answer.
    """

    def __init__(self, message: str, *, hint: str = "", url: str = "", status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.url = url
        self.status = status

    @property
    def may_pass_later(self) -> bool:
        """Whether the same request may work later: XNAT was not reached, was too slow, or has too much to do.

        This includes status 504, although such a request must not be repeated at once; see
        ``MAY_BE_REPEATED_NOW`` in ``client/pace.py``.
        """
        return self.status in (None, 429, 502, 503, 504)


class LoginError(ServerError, PermissionError):
    """XNAT does not know this user or password."""


class AccessDeniedError(ServerError, PermissionError):
    """The user may not do that."""


class NotInArchiveError(ServerError, FileNotFoundError):
    """XNAT has no such object, or this user may not see it."""


class ServerTimeoutError(ServerError, TimeoutError):
    """XNAT did not answer in time."""


class TransferError(ServerError):
    """Bytes were lost or changed on the way to or from XNAT."""


class MalformedFileError(TransferError):
    """A file that this library stored in XNAT does not have the form that it should have."""


class ImageError(XNATDatastoreError, ValueError):
    """Base class of errors about an image that cannot be read, converted or added."""


class NoImageError(ImageError, FileNotFoundError):
    """A scan holds nothing that can be read as an image."""


class ImageConversionError(ImageError):
    """The content of a scan is not one volume."""


class ImageConflictError(ImageError):
    """Another image already has the name, or is in the scan, that a new image was to get."""


class LabelError(XNATDatastoreError, ValueError):
    """Base class of errors about a label that cannot be accepted or read."""


class LabelFileError(LabelError):
    """A label file is missing, empty or not a label map."""


class LabelGeometryError(LabelError):
    """A label does not lie on the grid of its image."""


class UnreadDrawingError(LabelError):
    """A drawing that may be the newest label of an image cannot be read; no older label is returned in its place."""


class UnknownImageError(XNATDatastoreError, KeyError):
    """The datastore lists no such image."""


class AmbiguousNameError(XNATDatastoreError, LookupError):
    """Several images have the name, and nothing shows which one is meant."""


class UnknownLabelError(XNATDatastoreError, KeyError):
    """The image has no such label."""


class LabelNotUploadedError(XNATDatastoreError, OSError):
    """A label is safe on disk, but not yet in XNAT."""


class ReadOnlyError(XNATDatastoreError, PermissionError):
    """The datastore was opened read-only."""


class DryRunError(ReadOnlyError):
    """In a dry run nothing is sent, and nothing is kept; it says what would be sent."""


class CacheError(XNATDatastoreError, OSError):
    """The cache folder cannot be used."""


def restored(kind: type[XNATDatastoreError], args: tuple[Any, ...], fields: dict[str, Any]) -> XNATDatastoreError:
    """Return an error that was pickled, with all its fields."""
    # Python refuses Exception.__new__ for a subclass of OSError, because the memory layouts differ.
    made_by = OSError if issubclass(kind, OSError) else Exception
    error = made_by.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


def name_some(names: Iterable[str], most: int = 3) -> str:
    """Return the first names as text for a message, and how many more there are; "" if there are none.

    Parameters
    ----------
    names : iterable of str
        The names, in the order in which they are named.
    most : int
        How many are named at most.
    """
    known = list(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more
