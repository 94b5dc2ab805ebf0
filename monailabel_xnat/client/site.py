"""Facts about an XNAT site: its version and plugins, and what this user may do there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from monailabel_xnat.client.files import list_files
from monailabel_xnat.client.items import project_path, resource_path
from monailabel_xnat.client.session import Session
from monailabel_xnat.client.upload import remove_file, upload
from monailabel_xnat.errors import AccessDeniedError, NotInArchiveError

Answer = TypeVar("Answer")

_CHECK_RESOURCE = "MONAILABEL_check"
_CHECK_CONTENT = b"monailabel-xnat check --write stored this file; it may be deleted.\n"


@dataclass(frozen=True)
class Site:
    """The facts about one XNAT site that it shows to this user.

    Attributes
    ----------
    version
        XNAT's version, such as ``1.8.10``; "" if the site does not say.
    plugins
        Ids of the installed plugins; None if the site does not list them for this user.
    anonymises
        Whether the site's anonymisation script changes imported images; None if the site does not say.
    roles
        The role of the user in each project, ``Owners``, ``Members`` or ``Collaborators``, by project ID. Public
        projects in which the user has no role are not in it.
    """

    version: str
    plugins: tuple[str, ...] | None
    anonymises: bool | None
    roles: dict[str, str]


def describe_site(session: Session) -> Site:
    """Return facts about a site; this takes four small requests.

    Raises
    ------
    ServerError
        If XNAT fails. A fact that the site does not know or does not show to this user is not a failure.
    """
    build = _told(lambda: session.json("/xapi/siteConfig/buildInfo"))
    plugins = _told(lambda: session.json("/xapi/plugins"))
    anonymises = _told(lambda: session.json("/xapi/anonymize/site/enabled"))
    access = _told(lambda: session.json("/xapi/access/projects"))
    return Site(
        version=str(build.get("version", "")) if isinstance(build, dict) else "",
        plugins=tuple(sorted(plugins)) if isinstance(plugins, dict) else None,
        anonymises=anonymises if isinstance(anonymises, bool) else None,
        roles=_roles(access),
    )


def try_to_write(session: Session, project: str) -> bool:
    """Store a small file in a project, read it back, delete it, and return whether it could be deleted.

    Parameters
    ----------
    session : Session
        The connection.
    project : str
        ID of the project. The file goes into its resource ``MONAILABEL_check``.

    Returns
    -------
    bool
        Whether the file could be deleted. In XNAT members of a project may write but not delete: then the file stays.

    Raises
    ------
    AccessDeniedError
        If the user may not write there.
    ServerError
        If XNAT fails, or the stored file differs from the one that was sent.
    """
    resource = resource_path(project_path(project), _CHECK_RESOURCE)
    file = upload(session, resource, "check.txt", _CHECK_CONTENT, format="TXT", content="MONAILABEL", overwrite=True)
    try:
        remove_file(session, file, list_files(session, resource))
    except AccessDeniedError:
        return False
    return True


def _told(ask: Callable[[], Answer]) -> Answer | None:
    """Return an answer; None if the site has no such page, or does not show it to this user."""
    try:
        return ask()
    except (AccessDeniedError, NotInArchiveError):
        return None


def _roles(access: Any) -> dict[str, str]:
    rows = access if isinstance(access, list) else []
    return {str(row["ID"]): str(row.get("role", "")) for row in rows if isinstance(row, dict) and "ID" in row}
