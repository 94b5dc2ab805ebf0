"""``monailabel-xnat push``: it saves label files to the scans that they belong to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from monailabel_xnat.cli.common import Opened, opened, print_json, print_table, progress, with_json, with_settings
from monailabel_xnat.config import Settings
from monailabel_xnat.errors import DryRunError, SettingsError, XNATDatastoreError

if TYPE_CHECKING:
    from monailabel_xnat.catalog import Scan

_LABEL_ENDINGS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".dcm")
# The key in the info of a pushed label for the SHA-256 of its file. With it, no file is pushed twice.
_PUSHED = "pushed_sha256"
_NEW, _THERE, _SAVED = "new", "there already", "saved"


@click.command("push")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--tag", default="original", show_default=True, help="Tag of the labels: final, original or another.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of the pull that the labels were made from, or the monailabel_xnat.json in it. It says to which image "
    "each file belongs, and what the values mean. Default: the nearest one above the files. Without one, the names of "
    "the files decide.",
)
@click.option("--dry-run", is_flag=True, help="Check the files, show what would be saved, and save nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before saving.")
@with_json
@with_settings
@click.pass_context
def command(
    ctx: click.Context,
    settings: Settings,
    files: tuple[Path, ...],
    tag: str,
    manifest: Path | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Save label FILES, or all label files in folders, as labels of the scans that they belong to.

    The command first shows which file goes to which scan, and asks. A label that was pushed before is not saved again,
    and nothing in XNAT is overwritten. The exit code is 1 if a file belongs to no scan or could not be saved. Where
    nobody can answer, such as in a job at night, give --yes.

    Example: monailabel-xnat push predictions --manifest liver --project LIVER --tag original
    """
    paths = sorted(_label_files(files))
    if not paths:
        raise SettingsError(
            "none of these files is a label file", hint=f"the names of label files end in {', '.join(_LABEL_ENDINGS)}"
        )
    places, labels = _manifest_of(paths, manifest, settings.server)
    settings = replace(settings, dry_run=dry_run or settings.dry_run)
    with opened(settings) as parts:
        parts.catalog.scans()  # asks XNAT once for all images; the images of the files are looked up among them
        rows = [_planned(parts, path, tag, places) for path in paths]
        if not as_json:
            print_table(("file", "image", "what happens"), [(row["file"], row["image"], row["state"]) for row in rows])
        to_save = [row for row in rows if row["state"] == _NEW]
        is_wanted = bool(to_save) and not settings.dry_run and (yes or _confirmed(len(to_save)))
        if is_wanted or settings.dry_run:
            info = {"label_info": [{"name": name, "idx": value} for name, value in labels.items()]}
            with progress("saving labels" if is_wanted else "checking labels", len(to_save)) as step:
                for row in to_save:
                    _save(parts, row, tag, info)
                    step()
    if as_json:
        print_json([{key: row[key] for key in ("file", "image", "state")} for row in rows])
    elif is_wanted:
        for row in to_save:
            click.echo(f"{row['file']}  {row['state']}", err=not row["state"].startswith(_SAVED))
    else:
        refused = [row for row in to_save if row["state"] != _NEW]
        for row in refused:
            click.echo(f"{row['file']}  {row['state']}", err=True)
        click.echo(f"{len(to_save) - len(refused)} labels are new; nothing was saved.")
    if not all(row["state"].startswith((_SAVED, _NEW, _THERE)) for row in rows):
        ctx.exit(1)


def _confirmed(count: int) -> bool:
    """Ask whether labels shall be saved, and return the answer.

    Raises
    ------
    SettingsError
        If nobody can answer, because the standard input has ended and is no terminal.
    """
    try:
        return click.confirm(f"Save {count} labels?", err=True)
    except click.Abort:
        if sys.stdin.isatty():  # Ctrl-C or Ctrl-D
            raise
        click.echo(err=True)
        raise SettingsError(
            "nothing was saved, because nobody could be asked", hint="give --yes to save without a question"
        ) from None


def _label_files(given: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    for path in given:
        inside = path.rglob("*") if path.is_dir() else [path]
        # macOS leaves files with the names ._NAME beside others; these are not labels.
        found |= {file for file in inside if file.name.endswith(_LABEL_ENDINGS) and not file.name.startswith(".")}
    return found


def _manifest_of(paths: list[Path], manifest: Path | None, server: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return the image id of each file name of a pull, and the values of its labels by name."""
    from monailabel_xnat.training.export import MANIFEST, read_cases

    if manifest is None:
        above = [parent / MANIFEST for parent in paths[0].resolve().parents if (parent / MANIFEST).is_file()]
        if not above:
            return {}, {}
        manifest = above[0]
    found = read_cases(manifest)
    if found.get("server") != server:
        raise SettingsError(
            f"the images in {manifest} are of {found.get('server')}, not of {server}",
            hint="give that address with --studies, or the manifest of a pull from this one",
        )
    places = {}
    for case in found["cases"]:
        for place in filter(None, (case.get("image"), case.get("label"))):
            stem = _stem(Path(place))
            # nnU-Net calls the image of a case CASE_0000 and its prediction CASE.
            places[stem] = places[stem.removesuffix("_0000")] = case["image_id"]
    return places, {str(name): int(value) for name, value in found.get("labels", {}).items()}


def _planned(parts: Opened, path: Path, tag: str, places: dict[str, str]) -> dict[str, Any]:
    """Return a row that says which image a file belongs to, and whether its label is in XNAT already."""
    from monailabel_xnat.disk import file_digest

    scan = _scan_of(parts, path, places)
    if scan is None:
        return {"file": str(path), "image": "", "state": "belongs to no image: see --manifest"}
    row = {"file": str(path), "image": str(scan.image_id), "state": _NEW, "scan": scan, "sha256": file_digest(path)}
    try:
        info = parts.labels.info(scan, tag)
    except XNATDatastoreError:  # there is no such label
        info = {}
    if info.get(_PUSHED) == row["sha256"]:
        row["state"] = _THERE
    return row


def _scan_of(parts: Opened, path: Path, places: dict[str, str]) -> Scan | None:
    stem = _stem(path)
    if stem in places:
        return parts.catalog.get(places[stem])
    found = [scan for scan in parts.catalog.scans() if scan.image_id.file_stem == stem]
    return found[0] if len(found) == 1 else None


def _stem(path: Path) -> str:
    ending = next((ending for ending in _LABEL_ENDINGS if path.name.endswith(ending)), path.suffix)
    return path.name.removesuffix(ending)


def _save(parts: Opened, row: dict[str, Any], tag: str, info: dict[str, Any]) -> None:
    """Save a label, or only check it in a dry run, and note in its row what came of it."""
    try:
        version = parts.store.save(row["scan"], tag, Path(row["file"]), {**info, _PUSHED: row["sha256"]})
    except DryRunError:
        pass  # it would be saved
    except XNATDatastoreError as error:
        row["state"] = f"failed: {error}"
    else:
        row["state"] = f"{_SAVED} as {version.name}"
