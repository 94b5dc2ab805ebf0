"""``monailabel-xnat check``: a report on whether everything is set up, with a remedy for each problem."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click

from monailabel_xnat.cli.common import Opened, opened, print_json, with_json, with_settings
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import XNATDatastoreError

OK, WARNING, FAILED = "ok", "warning", "failed"
_COLOURS = {OK: "green", WARNING: "yellow", FAILED: "red"}
_SUPPORTED = ("1.7", "1.8", "1.9", "1.10")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# A session that ends after a longer time without requests is no problem: it costs one new login.
_SHORT_SESSION_SECONDS = 120
_LITTLE_SPACE = 10 * 10**9
_ROI_PLUGIN, _DICOMWEB_PLUGIN = "roi", "dicomweb"
# Packages whose versions decide whether MONAI Label runs at all; see the comments in setup.cfg.
_PINNED = ("monailabel", "monai", "pydicom", "numpy", "xnat")


class Finding(NamedTuple):
    """One line of the report: what was checked, its state, a message, and a remedy."""

    subject: str
    state: str
    message: str
    remedy: str = ""


@click.command("check")
@click.option("--write", is_flag=True, help="Also store a small file in each project, and delete it again.")
@with_json
@with_settings
@click.pass_context
def command(ctx: click.Context, settings: Settings, write: bool, as_json: bool) -> None:
    """Check address, login, rights, plugins, folders and versions, and show how to solve problems. Nothing is changed.

    The exit code is 1 if something failed; warnings alone leave it at 0.

    Example: monailabel-xnat check --studies https://xnat.example.org --project LIVER
    """
    findings: list[Finding] = []
    for finding in _findings(settings, write=write):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        print_json([finding._asdict() for finding in findings])
    if any(finding.state == FAILED for finding in findings):
        ctx.exit(1)


def _print(finding: Finding) -> None:
    mark = click.style(f"{finding.state:<7}", fg=_COLOURS[finding.state])
    click.echo(f"{mark}  {finding.subject}: {finding.message}")
    if finding.remedy:
        click.echo(f"         {finding.remedy}")


def _findings(settings: Settings, *, write: bool) -> Iterator[Finding]:
    yield _address(settings)
    yield from _folders(settings)
    yield from _versions()
    try:
        with opened(settings) as parts:
            yield Finding("login", OK, f"as {parts.session.user or 'guest'}")
            yield from _site(parts, settings)
            yield from _projects(parts, settings, write=write)
            yield from _archive(parts, settings)
            yield _outbox(parts)
    except XNATDatastoreError as error:
        yield Finding("XNAT", FAILED, error.message, getattr(error, "hint", "") or "")


def _address(settings: Settings) -> Finding:
    address = urlsplit(settings.server)
    if address.scheme == "http" and address.hostname not in _LOOPBACK:
        message = f"{settings.server} is not encrypted: passwords and images can be read on the way"
        return Finding("address", WARNING, message, "use https://, if the site has it")
    if not settings.verify_tls:
        remedy = "set ca_bundle to the file with your hospital's certificate authority, and verify_tls to true"
        return Finding("address", WARNING, f"the certificate of {settings.server} is not checked", remedy)
    return Finding("address", OK, settings.server)


def _site(parts: Opened, settings: Settings) -> Iterator[Finding]:
    from monailabel_xnat.client.site import describe_site

    site = describe_site(parts.session)
    if site.version.startswith(_SUPPORTED):
        yield Finding("XNAT version", OK, site.version)
    else:
        message = f"{site.version or 'not known'}; tried are {', '.join(_SUPPORTED)}"
        yield Finding("XNAT version", WARNING, message)
    life = parts.session.idle_life
    if life is None:
        yield Finding("session", OK, "XNAT does not say how long a login lasts")
    else:
        state = WARNING if life < _SHORT_SESSION_SECONDS else OK
        yield Finding("session", state, f"a login that is not used lasts {life / 60:.0f} minutes; it is renewed")
    if site.anonymises:
        message = "the site changes DICOM files that are imported, so that they are not the ones that were sent"
        yield Finding("anonymisation", OK, message)
    yield from _plugins(site.plugins, settings)
    for project in settings.project:
        role = site.roles.get(project, "")
        if role in ("Owners", "Members"):
            rest = "" if role == "Owners" else ", who may save but not delete"
            yield Finding(f"rights in {project}", OK, f"one of the {role.lower()}{rest}")
        elif not settings.sends_nothing:
            message = f"{f'one of the {role.lower()}' if role else 'no role of its own'}: saving may be refused"
            remedy = f"ask an owner of {project} to make this user a member of it, or set read_only to true"
            yield Finding(f"rights in {project}", WARNING, message, remedy)


def _plugins(plugins: tuple[str, ...] | None, settings: Settings) -> Iterator[Finding]:
    if plugins is None:
        yield Finding("plugins", OK, "the site does not list them for this user")
        return
    if any(_ROI_PLUGIN in plugin.lower() for plugin in plugins):
        yield Finding("ROI plugin", OK, "installed: labels are exchanged with the XNAT-OHIF viewer")
    elif settings.roi_write:
        remedy = "install the XNAT OHIF viewer plugin, or set roi_write to an empty text"
        yield Finding("ROI plugin", WARNING, "not installed: labels cannot be shown in the XNAT-OHIF viewer", remedy)
    if any(_DICOMWEB_PLUGIN in plugin.lower() for plugin in plugins):
        yield Finding("DICOMweb plugin", OK, "installed: MONAI Label's OHIF can show images")
    else:
        yield Finding("DICOMweb plugin", OK, "not installed: only MONAI Label's own OHIF needs it")


def _projects(parts: Opened, settings: Settings, *, write: bool) -> Iterator[Finding]:
    from monailabel_xnat.client.site import try_to_write

    count = len(parts.catalog.scans())
    remedy = parts.catalog.filter_problem if not count else ""
    yield Finding("images", OK if count else WARNING, f"{count} images", remedy)
    if parts.catalog.problem:
        yield Finding("listing", WARNING, parts.catalog.problem)
    for project in settings.project if write else ():
        try:
            is_clean = try_to_write(parts.session, project)
        except XNATDatastoreError as error:
            yield Finding(f"writing to {project}", FAILED, error.message, getattr(error, "hint", "") or "")
        else:
            rest = "" if is_clean else "; it stays, for members may not delete"
            yield Finding(f"writing to {project}", OK, f"a small file was stored and read back{rest}")


def _archive(parts: Opened, settings: Settings) -> Iterator[Finding]:
    if settings.asset_path is None:
        return
    remedy = "mount the archive there, readable by this user, or leave asset_path empty: images are downloaded then"
    if not settings.asset_path.is_dir():
        yield Finding("archive mount", FAILED, f"there is no folder {settings.asset_path}", remedy)
        return
    for scan in parts.catalog.scans()[:1]:
        path = parts.images.path(scan)
        entries = [entry for entry in parts.images.cache.entries() if entry.path == path]
        if entries and entries[0].origin:
            yield Finding("archive mount", OK, "a sample was read there, and is what XNAT lists")
        else:
            yield Finding("archive mount", WARNING, "a sample had to be downloaded", remedy)


def _outbox(parts: Opened) -> Finding:
    waiting = parts.store.waiting()
    if not waiting:
        return Finding("outbox", OK, "no label waits for XNAT")
    return Finding("outbox", WARNING, f"{waiting} labels are not in XNAT yet", "see `monailabel-xnat outbox`")


def _folders(settings: Settings) -> Iterator[Finding]:
    folder = settings.server_folder
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding("cache", FAILED, f"{nearest} cannot be written", "set cache_path to a folder that can be")
        return
    free = shutil.disk_usage(nearest).free
    message = f"{folder}, {free / 10**9:.0f} GB free"
    remedy = "make room, or set cache_path to another disk" if free < _LITTLE_SPACE else ""
    yield Finding("cache", WARNING if remedy else OK, message, remedy)


def _versions() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    wanted = {}
    for text in metadata.requires("monailabel-xnat") or []:
        requirement = Requirement(text)
        if requirement.name in _PINNED and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            wanted[requirement.name] = requirement.specifier
    for name, specifier in wanted.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, FAILED, "not installed", f"pip install '{name}{specifier}'")
            continue
        if specifier.contains(version, prereleases=True):
            yield Finding(name, OK, version)
        else:
            yield Finding(name, FAILED, f"{version}, but {specifier} is needed", f"pip install '{name}{specifier}'")
    python = shutil.which("python")
    if python is None or Path(python).resolve() != Path(sys.executable).resolve():
        message = f"the command `monailabel` would run {python or 'nothing'} instead of {sys.executable}"
        yield Finding("python", WARNING, message, "use `monailabel-xnat start_server`, or activate this environment")
