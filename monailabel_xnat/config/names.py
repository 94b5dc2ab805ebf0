"""The names of settings in the places where users write them, and what happens to names that are not settings."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from monailabel_xnat.errors import SettingsError, UnknownSettingError

logger = logging.getLogger(__name__)

CONF_PREFIX = "xnat_"
ENVIRONMENT_PREFIX = "MONAI_LABEL_XNAT_"
SECRETS = ("password",)
# Names that other libraries use for a setting, and our name, which does not look similar.
_RENAMED = {"server": "api_url", "host": "api_url", "URL": "SERVER", "HOST": "SERVER"}


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that are not settings.

    Parameters
    ----------
    given : iterable of str
        The keywords that were given.
    known : iterable of str
        All keywords that are allowed.

    Raises
    ------
    UnknownSettingError
        If a given keyword is not allowed. The hint names the allowed ones that look most like it.
    """
    names = sorted(known)
    for name in given:
        if name not in names:
            raise UnknownSettingError(f"there is no setting {name!r}", hint=_did_you_mean(name, names))


def refuse_unknown_and_secret(conf: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keys of MONAI Label's ``--conf`` that are misspelt settings or secrets.

    Parameters
    ----------
    conf : mapping
        The values of ``--conf``. Keys that do not begin with ``xnat_`` belong to the app, and are not looked at. One
        that is called like a setting causes a warning.
    known : iterable of str
        The names of all settings.

    Raises
    ------
    UnknownSettingError
        If a key begins with ``xnat_`` and is not a setting.
    SettingsError
        If a key is a secret: MONAI Label writes ``--conf`` to its logs.
    """
    names = sorted(known)
    for key in conf:
        plain = str(key).lower().replace("-", "_")
        name = plain.removeprefix(CONF_PREFIX)
        if plain.startswith(CONF_PREFIX) and (key != plain or name not in names):
            # This must be an error: if a misspelt read_only were ignored, everybody could write.
            raise UnknownSettingError(f"unknown setting --conf {key}", hint=_did_you_mean(name, names, CONF_PREFIX))
        if plain in names:
            logger.warning(
                "--conf %s belongs to the app; if the XNAT datastore was meant, write %s", key, CONF_PREFIX + plain
            )
    for name in SECRETS:
        if conf.get(CONF_PREFIX + name):
            raise SettingsError(
                f"--conf {CONF_PREFIX}{name} is refused: MONAI Label writes --conf to its logs",
                hint=f"set the environment variable {ENVIRONMENT_PREFIX}{name.upper()} or use ~/.netrc",
            )


def warn_of_unknown_variables(environ: Mapping[str, str], known: Iterable[str]) -> None:
    """Warn about variables that nobody reads. Their values are not shown, because one may be a password.

    Parameters
    ----------
    environ : mapping
        The environment.
    known : iterable of str
        The names of all settings.
    """
    names = sorted(name.upper() for name in known)
    for variable in environ:
        name = variable.upper().removeprefix(ENVIRONMENT_PREFIX)
        if name != variable.upper() and variable not in (ENVIRONMENT_PREFIX + setting for setting in names):
            hint = _did_you_mean(name, names, ENVIRONMENT_PREFIX)
            logger.warning("the environment variable %s is no setting and has no effect: %s", variable, hint)


def _did_you_mean(name: str, known: list[str], prefix: str = "") -> str:
    """Return a hint with the known names that look most like a name, or with all known names."""
    # The names are compared without the prefix: it is the same in all, and would make any two names look alike.
    nearest = difflib.get_close_matches(_RENAMED.get(name, name), known, n=2)
    if nearest:
        return f"did you mean {' or '.join(prefix + found for found in nearest)}?"
    return f"known are {', '.join(prefix + name for name in known)}"
