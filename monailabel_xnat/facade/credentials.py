"""Whose login it is, where that is not simply what the settings say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from monailabel_xnat.config import CONF_PREFIX, Settings
from monailabel_xnat.errors import SettingsError

# How the names of the variables end that Settings reads credentials from.
_CREDENTIALS = ("_USERNAME", "_USER", "_PASSWORD", "_PASS")


def settings_beside(
    server: str, arguments: Mapping[str, Any], conf: Mapping[str, Any] | None, environ: Mapping[str, str] | None
) -> Settings:
    """Gather the settings of a datastore over somebody else's session.

    User name and password are those that were given as arguments for that purpose, or none: what the environment or
    ``~/.netrc`` says may be another user's.

    Parameters
    ----------
    server : str
        Address of the session's XNAT.
    arguments, conf, environ
        As for :meth:`Settings.load`.

    Raises
    ------
    SettingsError
        Also if another address was given than the session's.
    """
    environ = os.environ if environ is None else environ
    elsewhere = {name: value for name, value in environ.items() if not name.upper().endswith(_CREDENTIALS)}
    kept = {name: value for name, value in (conf or {}).items() if name != f"{CONF_PREFIX}username"}
    for name, other in (("username", "password"), ("password", "username")):
        if arguments.get(name) and not arguments.get(other):
            raise SettingsError(
                f"a {name} beside connection, but no {other}",
                hint="give both, for a new login when that of the connection has expired, or none of them",
            )
    settings = Settings.load({**arguments, "server": server}, kept, {**elsewhere, "NETRC": os.devnull})
    if arguments.get("server"):
        given = Settings.load({"server": arguments["server"]}, environ={"NETRC": os.devnull}).server
        if given != settings.server:
            raise SettingsError(
                f"the session that was given as connection is one at {settings.server}, but api_url is {given}",
                hint="leave api_url out",
            )
    return settings


def completed(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """Complete settings that came without password from another process.

    Raises
    ------
    SettingsError
        If there is a user name, but neither the environment nor ``~/.netrc`` has a password for it.
    """
    if not settings.username:
        return settings
    login = {"server": settings.server, "username": settings.username}
    return replace(settings, password=Settings.load(login, environ=environ).password)
