"""The settings: their names and defaults, the sources from which they are read, and the values that are allowed."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from monailabel_xnat.config.names import (
    CONF_PREFIX,
    ENVIRONMENT_PREFIX,
    SECRETS,
    refuse_unknown,
    refuse_unknown_and_secret,
    warn_of_unknown_variables,
)
from monailabel_xnat.config.patterns import Patterns
from monailabel_xnat.config.values import (
    Secret,
    Value,
    as_flag,
    as_folder,
    as_label_resources,
    as_label_values,
    as_names,
    as_patterns,
    as_seconds,
    as_secret,
    as_server,
    as_text,
    at_least,
    limit_in,
    one_of,
)
from monailabel_xnat.disk import require_own_place, text_digest
from monailabel_xnat.errors import SettingsError

# Variables of MONAI Label, then of xnatpy, by the setting that they stand for. The first one that is set wins.
_FOREIGN_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "server": ("MONAI_LABEL_DATASTORE_URL", "XNATPY_HOST", "XNAT_HOST"),
    "username": ("MONAI_LABEL_DATASTORE_USERNAME", "XNATPY_USER", "XNAT_USER"),
    "password": ("MONAI_LABEL_DATASTORE_PASSWORD", "XNATPY_PASS", "XNAT_PASS"),
    "project": ("MONAI_LABEL_DATASTORE_PROJECT",),
    "asset_path": ("MONAI_LABEL_DATASTORE_ASSET_PATH",),
    "cache_path": ("MONAI_LABEL_DATASTORE_CACHE_PATH",),
    "read_only": ("MONAI_LABEL_DATASTORE_READ_ONLY",),
}
# Settings for which an empty text is a value: it turns them off. For all others it means "not given".
_MAY_BE_EMPTY = ("roi_tag", "roi_write")


def _setting(parse: Callable[[object], Value], default: Value, meaning: str) -> Value:
    metadata = {"parse": parse, "meaning": meaning}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings, with values that were checked. Make one with :meth:`load`.

    The meaning of each field is listed below; docs/settings.md has the defaults as well.
    """

    server: str = _setting(as_server, "", "address of the XNAT site")
    username: str = _setting(
        as_text, "", "user name, or alias of an XNAT alias token; without one, XNAT is used as a guest"
    )
    password: Secret = _setting(
        as_secret, Secret(""), "password, or secret of the alias token; it is refused in --conf"
    )
    auth_provider: str = _setting(as_text, "", "authentication provider of XNAT to log in with, as in xnat.connect")
    project: tuple[str, ...] = _setting(
        as_names, (), "project IDs, comma-separated; without one, all projects that the user can read"
    )
    asset_path: Path | None = _setting(as_folder, None, "folder where XNAT's archive is mounted on this machine")
    cache_path: Path | None = _setting(
        as_folder, None, "folder for downloaded and converted images; default: the user's cache folder"
    )
    data_path: Path | None = _setting(
        as_folder,
        None,
        "folder for labels that are not in XNAT yet; default: cache_path if it is set, otherwise the user's data "
        "folder",
    )
    cache_budget: float = _setting(
        limit_in("gigabytes"),
        50.0,
        "how many gigabytes of images are kept on disk, for all servers together; the least recently used images are "
        "removed first; 0: no limit",
    )
    image_format: str = _setting(
        one_of("nifti", "dicom"),
        "nifti",
        "what get_image_uri returns: nifti for one NIfTI file, dicom for the folder of DICOM files",
    )
    image_resource: tuple[str, ...] = _setting(
        as_patterns,
        ("DICOM", "NIFTI", "NRRD", "MHA", "MHD", "PNG", "JPEG", "TIFF"),
        "patterns of the resources that are read as the image, the preferred one first; ! excludes",
    )
    gantry_tilt: str = _setting(
        one_of("refuse", "stack"),
        "refuse",
        "what to do with CT slices of a tilted gantry: refuse them, or stack them at right angles",
    )
    compress: bool = _setting(
        as_flag, False, "write converted images as .nii.gz, which is smaller, but slower to write and to read"
    )
    prefetch: int = _setting(
        at_least(0), 2, "how many images are fetched ahead, in the background, after a next sample"
    )
    scan_type: tuple[str, ...] = _setting(as_patterns, Patterns(), "patterns of scan types; ! excludes")
    series_description: tuple[str, ...] = _setting(
        as_patterns, Patterns(), "patterns of series descriptions; ! excludes"
    )
    modality: tuple[str, ...] = _setting(as_patterns, Patterns(), "patterns of modalities (MR, CT, ...); ! excludes")
    quality: tuple[str, ...] = _setting(as_patterns, Patterns(("!unusable",)), "patterns of scan qualities; ! excludes")
    subject: tuple[str, ...] = _setting(as_patterns, Patterns(), "patterns of subject labels or IDs; ! excludes")
    session: tuple[str, ...] = _setting(as_patterns, Patterns(), "patterns of session labels or IDs; ! excludes")
    min_frames: int = _setting(at_least(0), 0, "how many images (frames) a scan must have at least")
    labels: tuple[tuple[str, int], ...] = _setting(
        as_label_values, (), "voxel value of each label name, such as spleen=1,liver=2"
    )
    label_resource: tuple[tuple[str, str, str], ...] = _setting(
        as_label_resources,
        (),
        "NIfTI labels in other resources of the scan, as tag:resource:pattern; used where this package has stored no "
        "label",
    )
    roi_tag: str = _setting(
        as_text,
        "final",
        "tag for what people draw in viewers (ROI collections, SEG and RTSTRUCT scans); empty: drawings are not read",
    )
    roi_label: tuple[str, ...] = _setting(
        as_patterns, Patterns(), "patterns of the names of ROI collections and drawn scans that are read; ! excludes"
    )
    roi_write: tuple[str, ...] = _setting(
        as_names,
        ("final", "original"),
        "tags of the labels that are also stored as ROI collections, for the XNAT-OHIF viewer; empty: none",
    )
    label_scan: tuple[str, ...] = _setting(
        as_names, (), "tags of the labels that are also stored as SEG scans; empty: none"
    )
    read_only: bool = _setting(as_flag, False, "refuse everything that would write to XNAT")
    dry_run: bool = _setting(
        as_flag, False, "check everything, report what would be written to XNAT, and refuse to write it"
    )
    allow_delete: bool = _setting(as_flag, False, "allow remove_image to delete the scan in XNAT")
    keep_versions: int = _setting(at_least(0), 0, "how many versions of each label are kept in XNAT; 0: all")
    connections: int = _setting(at_least(1), 4, "how many requests run at the same time, transfers included")
    rate_limit: float = _setting(
        limit_in("requests a second"), 0.0, "how many requests are started each second at most; 0: no limit"
    )
    timeout: float = _setting(
        as_seconds,
        120.0,
        "seconds to wait for an answer where XNAT has much to do: uploads, imports and listings of a project",
    )
    deadline: float = _setting(
        as_seconds,
        45.0,
        "seconds without progress after which any other request is given up, repeated tries and a new login included",
    )
    wait: bool = _setting(
        as_flag,
        False,
        "open the datastore also while XNAT does not answer, and connect later; in MONAI Label's server the default "
        "is true",
    )
    max_age: float = _setting(
        as_seconds,
        60.0,
        "seconds after which the scans in XNAT are listed again; if listing is quick, it is repeated sooner, after 5 "
        "seconds at the earliest",
    )
    claim_time: float = _setting(
        limit_in("seconds"),
        1800.0,
        "seconds for which an image that was handed out as next sample is not handed out again, "
        "by any server; 0: it may be at once",
    )
    verify_age: float = _setting(
        as_seconds,
        86400.0,
        "seconds after which the files of an image are compared with XNAT's list of them again; this is also done "
        "before each training",
    )
    verify_tls: bool = _setting(as_flag, True, "check the certificate of the server")
    ca_bundle: Path | None = _setting(as_folder, None, "file with the certificate authorities to trust")
    client_certificate: Path | None = _setting(as_folder, None, "file with the client certificate and its key")

    @classmethod
    def load(
        cls,
        arguments: Mapping[str, Any],
        conf: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Settings:
        """Return the settings, gathered from their sources. For each setting the first source that has it wins.

        The order of the sources is: arguments, conf, environment, ``~/.netrc`` (credentials only), default.

        Parameters
        ----------
        arguments : mapping
            Arguments of the constructor by field name. None and ``""`` count as not given, with one exception: ``""``
            turns off ``roi_tag`` and ``roi_write``.
        conf : mapping or None
            MONAI Label's ``--conf``. The keys ``xnat_<field>`` are settings; secrets are refused there.
        environ : mapping or None
            The environment; None: that of this process. It is searched for ``MONAI_LABEL_XNAT_<FIELD>``, then for
            the variables of MONAI Label and of xnatpy.

        Raises
        ------
        SettingsError
            If a setting is unknown (UnknownSettingError), wrong or missing, or if ``conf`` contains a secret.
        """
        conf = conf or {}
        environ = os.environ if environ is None else environ
        refuse_unknown(arguments, (item.name for item in fields(cls)))
        refuse_unknown_and_secret(conf, (item.name for item in fields(cls)))
        warn_of_unknown_variables(environ, (item.name for item in fields(cls)))
        values: dict[str, Any] = {}
        for item in fields(cls):
            origin, raw = _first_given(item.name, arguments, conf, environ)
            if raw is not None:
                values[item.name] = _parsed(item.name, origin, raw, item.metadata["parse"])
        if not values.get("server"):
            raise SettingsError("no XNAT server given", hint=f"give --studies, or set {ENVIRONMENT_PREFIX}SERVER")
        _complete_credentials(values, environ)
        return cls(**values)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only what differs from the defaults, because tasks for other machines carry the settings with them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return _settings_from, (
            {item.name: values[item.name] for item in fields(self) if values[item.name] != item.default},
        )

    def with_login(self, environ: Mapping[str, str]) -> Settings:
        """Return the same settings with a password from the environment or ``~/.netrc`` of this process.

        Settings that come from another process carry no password. Without a user name nothing is changed.

        Raises
        ------
        SettingsError
            If there is a user name, but neither the environment nor ``~/.netrc`` has a password for it.
        """
        if not self.username:
            return self
        login = {"server": self.server, "username": self.username}
        return replace(self, password=Settings.load(login, environ=environ).password)

    @property
    def server_folder(self) -> Path:
        """The cache folder of this server on this machine, for files that can be fetched or made again.

        Raises
        ------
        CacheError
            If it exists and other users may have put something into it, or if everybody may replace it; see
            :func:`~monailabel_xnat.disk.require_own_place`.
        """
        return self._below(self.cache_path or platformdirs.user_cache_path("monailabel_xnat"))

    @property
    def data_folder(self) -> Path:
        """The folder on this machine for data that exist nowhere else yet, such as labels that wait for XNAT.

        It is not a cache: what is in it must not be deleted. If ``data_path`` is not set but ``cache_path`` is, it lies
        there, because that may be the only folder that a container keeps.

        Raises
        ------
        CacheError
            As for :attr:`server_folder`.
        """
        return self._below(self.data_path or self.cache_path or _user_data())

    @property
    def earlier_data_folders(self) -> list[Path]:
        """Other folders in which data that exist nowhere else may still lie.

        Earlier versions put them there, or this version did so under other settings.
        """
        candidates = [self.server_folder, *([self._below(_user_data())] if self.data_path else [])]
        return [folder for folder in candidates if folder != self.data_folder]

    def _below(self, base: Path) -> Path:
        digest = text_digest(self.server)[:12]
        folder = base / f"{re.sub(r'[^A-Za-z0-9.-]', '_', urlsplit(self.server).netloc)}-{digest}"
        require_own_place(folder)
        return folder

    @property
    def sends_nothing(self) -> bool:
        """Whether nothing is sent that changes XNAT: because of ``read_only``, or of ``dry_run``."""
        return self.read_only or self.dry_run

    @property
    def label_values(self) -> dict[str, int]:
        """The voxel values that the setting ``labels`` gives, by label name."""
        return dict(self.labels)


# Each meaning is written once, beside its field. Copy them into the docstring, where `help(Settings)` shows them.
Settings.__doc__ = "\n".join(
    [
        *(Settings.__doc__ or "").rstrip().splitlines(),
        "\n    Attributes\n    ----------",
        *(f"    {item.name}\n        {item.metadata['meaning']}" for item in fields(Settings)),
    ]
)


def _user_data() -> Path:
    return platformdirs.user_data_path("monailabel_xnat", appauthor=False)


def _settings_from(values: Mapping[str, Any]) -> Settings:
    return Settings(**values)


def origins(
    arguments: Mapping[str, Any], conf: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the source from which :meth:`Settings.load` takes each setting, by its name.

    Settings that have their default are left out.

    Parameters
    ----------
    arguments, conf, environ
        As for :meth:`Settings.load`.
    """
    environ = os.environ if environ is None else environ
    found = {item.name: _first_given(item.name, arguments, conf, environ)[0] for item in fields(Settings)}
    named = {name: origin for name, origin in found.items() if origin}
    if "password" not in named and Settings.load(arguments, conf, environ).password:
        named["password"] = "~/.netrc"  # noqa: S105 - the name of the file
        named.setdefault("username", "~/.netrc")
    return named


def as_conf(
    arguments: Mapping[str, Any], conf: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the settings that are given anywhere as ``--conf`` would give them, for the app of another machine.

    Secrets are left out: that machine has its own login. So is what conf holds besides settings.

    Parameters
    ----------
    arguments, conf, environ
        As for :meth:`Settings.load`; values are texts, as a command has them.
    """
    environ = os.environ if environ is None else environ
    names = [item.name for item in fields(Settings) if item.name not in (*SECRETS, "server")]
    given = {name: _first_given(name, arguments, conf, environ)[1] for name in names}
    return {CONF_PREFIX + name: str(value) for name, value in given.items() if value is not None}


def _first_given(
    name: str, arguments: Mapping[str, Any], conf: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[str, Any]:
    """Return the source of a setting and its value there; ("", None) if no source has it."""
    candidates = [
        (f"argument {name}", arguments.get(name)),
        (f"--conf {CONF_PREFIX}{name}", conf.get(CONF_PREFIX + name)),
    ]
    variables = (ENVIRONMENT_PREFIX + name.upper(), *_FOREIGN_VARIABLES.get(name, ()))
    candidates += [(f"environment variable {variable}", environ.get(variable)) for variable in variables]
    empty = (None,) if name in _MAY_BE_EMPTY else (None, "")
    given = (candidate for candidate in candidates if candidate[1] not in empty)
    return next(given, ("", None))


def _parsed(name: str, origin: str, raw: object, parse: Callable[[object], Any]) -> Any:
    try:
        return parse(raw)
    except (TypeError, ValueError) as error:
        shown = "" if name in SECRETS or name == "server" else f" {raw!r}"
        raise SettingsError(f"{origin}: cannot use the value{shown}", hint=str(error)) from None


def _complete_credentials(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Fill in missing credentials from ~/.netrc, and refuse a user without a password: xnatpy would prompt for it."""
    if not values.get("password"):
        login, password = _netrc_login(urlsplit(values["server"]).hostname or "", values["server"], environ)
        if login and values.get("username", login) == login:
            values.update(username=login, password=Secret(password))
    if values.get("username") and not values.get("password"):
        raise SettingsError(
            f"no password for user {values['username']!r} on {values['server']}",
            hint=f"set the environment variable {ENVIRONMENT_PREFIX}PASSWORD or add the server to ~/.netrc",
        )
    if values.get("password") and not values.get("username"):
        raise SettingsError(
            f"there is a password but no user name for {values['server']}",
            hint=f"set the environment variable {ENVIRONMENT_PREFIX}USERNAME",
        )


def _netrc_login(host: str, server: str, environ: Mapping[str, str]) -> tuple[str, str]:
    path = Path(environ.get("NETRC") or Path(environ.get("HOME") or Path.home()) / ".netrc")
    try:
        logins = netrc.netrc(path)
    except FileNotFoundError:
        return "", ""
    except (OSError, netrc.NetrcParseError) as error:
        raise SettingsError(f"cannot read {path}: {type(error).__name__}", hint="repair or remove the file") from None
    # xnatpy looks for the server with its port, curl without it. Accept both, the more exact one first.
    found = logins.authenticators(urlsplit(server).netloc) or logins.authenticators(host)
    return (found[0] or "", found[2] or "") if found else ("", "")
