"""Writes a report as one HTML page that needs nothing from anywhere else.

What comes from XNAT is text, never markup: the template escapes all of it. The page has no script, and its policy
forbids scripts, requests, and any style but its own.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from monailabel_xnat.report.charts import dice_strip, progress_chart, shares, volume_strip
from monailabel_xnat.report.facts import ImageFacts, LeftOut, Picture, Report, SavedLabel

MOST_ROWS = 300
"""How many labels, and how many things of one kind that were left out, the page lists; the JSON has all."""

_FOLDER = Path(__file__).parent


def write_page(report: Report, pictures: Sequence[Picture] = ()) -> str:
    """Return the page.

    Parameters
    ----------
    report : Report
        The facts.
    pictures : sequence of Picture
        What was drawn.
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
        # Not markup from XNAT, but a file of this package; its digest is what the policy allows.
        style=Markup(style),  # noqa: S704
        style_digest=_base64(sha256(style.encode()).digest()),
    )


def _labelled(report: Report) -> list[tuple[ImageFacts, list[SavedLabel]]]:
    """Return the images that have labels, those with the newest first, each with its labels of today."""
    labels: dict[str, list[SavedLabel]] = {}
    for label in reversed(report.labels):
        if label.is_current:
            labels.setdefault(label.image, []).append(label)
    images = {image.image: image for image in report.images}
    return [(images[image], found) for image, found in labels.items()]


def _breakable(image: str) -> Markup:
    """Return an id with places to break it after each slash."""
    return Markup("/<wbr>").join(image.split("/"))


def _base64(content: bytes) -> str:
    return b64encode(content).decode()


def _moment(text: str) -> str:
    """Return a time as people read it, to the minute."""
    return text[:16].replace("T", " ")


def _volume(millilitres: float) -> str:
    """Return a volume with a tenth of a millilitre, of small structures with two digits that count."""
    return f"{millilitres:.1f}" if millilitres >= 1 else f"{millilitres:.2g}"
