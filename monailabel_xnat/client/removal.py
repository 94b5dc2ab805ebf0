"""Deleting files in XNAT, and nothing beside them."""

from __future__ import annotations

from collections.abc import Sequence

from monailabel_xnat.client.files import RemoteFile
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import owner_of
from monailabel_xnat.errors import AccessDeniedError, NotInArchiveError, ServerError


def remove_file(session: Session, file: RemoteFile, listing: Sequence[RemoteFile]) -> None:
    """Delete one file of a resource.

    Parameters
    ----------
    session : Session
        The connection.
    file : RemoteFile
        What to delete; one that is gone already is no error.
    listing : sequence of RemoteFile
        What the resource holds now.

    Raises
    ------
    AccessDeniedError
        If the user may not delete; in XNAT members of a project may write but not delete.
    ServerError
        If XNAT would delete other files as well, for it deletes all whose path starts with the one given.
    """
    others = [other.path for other in listing if other.path != file.path and other.path.startswith(file.path)]
    if others:
        raise ServerError(
            f"{file.path} cannot be deleted alone: XNAT would delete {', '.join(others)} as well", url=file.uri
        )
    try:
        session.request("DELETE", file.uri)
    except NotInArchiveError:
        return
    except AccessDeniedError as error:
        raise AccessDeniedError(
            f"user {session.user!r} may not delete in project {owner_of(session, file.uri)!r}",
            hint="an owner of the project can; in XNAT members may write but not delete",
            url=file.uri,
            status=error.status,
        ) from error
