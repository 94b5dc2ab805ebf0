"""What an XNAT site says about itself, and what a user may do there."""

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
    """One XNAT site, as far as it tells.

    Attributes
    ----------
    version
        XNAT's version, such as ``1.8.10``; "" if it does not say.
    plugins
        Ids of the plugins that are installed; None if the site does not list them for this user.
    anonymises
        Whether the site's anonymisation script changes what is imported; None if it does not say.
    roles
        What the user is in each project, ``Owners``, ``Members`` or ``Collaborators``, by project ID. Public projects
        without a role are not in it.
    """

    version: str
    plugins: tuple[str, ...] | None
    anonymises: bool | None
    roles: dict[str, str]


def describe_site(session: Session) -> Site:
    """Ask a site about itself: four small requests.

    Raises
    ------
    ServerError
        If XNAT fails. What it does not know, or does not tell this user, is no failure.
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
    """Store a small file in a project, read it back and delete it again.

    Parameters
    ----------
    session : Session
        The connection.
    project : str
        ID of the project. The file goes into its resource ``MONAILABEL_check``.

    Returns
    -------
    bool
        Whether it could be deleted, too. XNAT lets members of a project write, but not delete: the file stays then.

    Raises
    ------
    AccessDeniedError
        If the user may not write there.
    ServerError
        If XNAT fails, or holds something else than was sent.
    """
    resource = resource_path(project_path(project), _CHECK_RESOURCE)
    file = upload(session, resource, "check.txt", _CHECK_CONTENT, format="TXT", content="MONAILABEL", overwrite=True)
    try:
        remove_file(session, file, list_files(session, resource))
    except AccessDeniedError:
        return False
    return True


def _told(ask: Callable[[], Answer]) -> Answer | None:
    """Return an answer; None where the site has no such page or does not show it to this user."""
    try:
        return ask()
    except (AccessDeniedError, NotInArchiveError):
        return None


def _roles(access: Any) -> dict[str, str]:
    rows = access if isinstance(access, list) else []
    return {str(row["ID"]): str(row.get("role", "")) for row in rows if isinstance(row, dict) and "ID" in row}
