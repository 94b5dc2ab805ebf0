"""A report as one HTML page that needs no other files.

All values from XNAT are texts, never markup: the template escapes them. The page has no script, and its content
security policy forbids scripts, requests, and any style except its own.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from monailabel_xnat.cli.report.charts import dice_strip, progress_chart, shares, volume_strip
from monailabel_xnat.cli.report.facts import ImageFacts, LeftOut, Picture, Report, SavedLabel

MOST_ROWS = 300
"""The page lists at most this many labels, and this many left-out items of one kind. The JSON lists all."""

_FOLDER = Path(__file__).parent


def write_page(report: Report, pictures: Sequence[Picture] = ()) -> str:
    """Return the HTML of the page.

    Parameters
    ----------
    report : Report
        The facts.
    pictures : sequence of Picture
        The pictures of labels to show.
    """
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        progress_chart=progress_chart, shares=shares, dice_strip=dice_strip, volume_strip=volume_strip
    )
    environment.filters.update(base64=_base64, breakable=_breakable, moment=_moment, volume=_volume)
    left_out: dict[str, list[LeftOut]] = {}
    for item in report.left_out:
        left_out.setdefault(item.kind, []).append(item)
    return environment.get_template("page.html.j2").render(
        report=report,
        labelled=_labelled(report),
        pictures=pictures,
        left_out=left_out,
        most_rows=MOST_ROWS,
        # This markup is a file of this package, and does not come from XNAT. The policy allows it by its digest.
        style=Markup(style),  # noqa: S704
        style_digest=_base64(sha256(style.encode()).digest()),
    )


def _labelled(report: Report) -> list[tuple[ImageFacts, list[SavedLabel]]]:
    """Return the images that have labels, each with its present labels; the image with the newest label comes first."""
    labels: dict[str, list[SavedLabel]] = {}
    for label in reversed(report.labels):
        if label.is_current:
            labels.setdefault(label.image, []).append(label)
    images = {image.image: image for image in report.images}
    return [(images[image], found) for image, found in labels.items()]


def _breakable(image: str) -> Markup:
    """Return an id as markup in which a browser may break the line after each slash."""
    return Markup("/<wbr>").join(image.split("/"))


def _base64(content: bytes) -> str:
    return b64encode(content).decode()


def _moment(text: str) -> str:
    """Return a time as date, hours and minutes."""
    return text[:16].replace("T", " ")


def _volume(millilitres: float) -> str:
    """Return a volume with one decimal; below 1 millilitre, with two significant digits."""
    return f"{millilitres:.1f}" if millilitres >= 1 else f"{millilitres:.2g}"
