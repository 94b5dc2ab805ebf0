"""Charts as SVG for the page. Each has a text for screen readers; the style of the page sets the colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date

from markupsafe import Markup, escape

from monailabel_xnat.cli.report.facts import Agreement, Day, StructureVolumes

# Sizes and margins in units of the drawing. The page scales it to the width that is available.
_WIDTH, _HEIGHT = 400, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 390, 12, 160
_STRIP_WIDTH, _STRIP_HEIGHT, _STRIP_MARGIN = 160, 22, 7


def progress_chart(days: Sequence[Day], images: int, title: str) -> Markup:
    """Return a chart of how many images were final, and how many were drafts, at the end of each day.

    Parameters
    ----------
    days : sequence of Day
        The days in order; at least one.
    images : int
        The number of all images, which is the top of the chart.
    title : str
        A text for screen readers that says what the chart shows.
    """
    first, last = (date.fromisoformat(day.date).toordinal() for day in (days[0], days[-1]))

    def across(day: str) -> float:
        share = (date.fromisoformat(day).toordinal() - first) / (last - first) if last > first else 0.0
        return round(_LEFT + share * (_RIGHT - _LEFT), 1)

    def up(count: int) -> float:
        return round(_BOTTOM - count / max(images, 1) * (_BOTTOM - _TOP), 1)

    def area(counts: Iterable[int]) -> str:
        """Return the SVG path of an area with steps: each count holds from its day to the next one."""
        corners = [f"M{_LEFT} {_BOTTOM}"]
        for day, count in zip(days, counts, strict=True):
            corners.append(f"H{across(day.date)}V{up(count)}")
        return "".join([*corners, f"H{_RIGHT}V{_BOTTOM}Z"])

    ticks = sorted({0, images // 2, images})
    lines = Markup().join(
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{}" class="end">{}</text>'
        ).format(_LEFT, _RIGHT, _LEFT - 6, up(tick) + 4, tick, y=up(tick))
        for tick in ticks
    )
    dates = Markup('<text x="{}" y="{}" class="end">{}</text>').format(_RIGHT, _HEIGHT - 8, days[-1].date)
    if last > first:
        dates += Markup('<text x="{}" y="{}">{}</text>').format(_LEFT, _HEIGHT - 8, days[0].date)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}'
        '<path class="draft" d="{}"/><path class="final" d="{}"/>{}</svg>'
    ).format(
        _WIDTH,
        _HEIGHT,
        title,
        lines,
        area(day.draft + day.final for day in days),
        area(day.final for day in days),
        dates,
    )


def shares(parts: Sequence[tuple[str, int]], whole: int, title: str) -> Markup:
    """Return a bar with one section for each part, as wide as its share of ``whole``.

    Parameters
    ----------
    parts : sequence of tuple
        For each part the name of its style in the page, and its count.
    whole : int
        The count that fills the bar.
    title : str
        A text for screen readers.
    """
    drawn, start = Markup(), 0.0
    for style, count in parts:
        width = round(100 * count / max(whole, 1), 2)
        drawn += Markup('<rect class="{}" x="{}" y="0" width="{}" height="10"/>').format(style, start, width)
        start = round(start + width, 2)
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="rest" x="0" y="0" width="100" height="10"/>{}</svg>'
    ).format(title, drawn)


def strip(values: Sequence[tuple[float, bool]], low: float, high: float, title: str, box: str | Markup = "") -> Markup:
    """Return a line from ``low`` to ``high`` with values as dots, and marked values as triangles of another colour.

    Parameters
    ----------
    values : sequence of tuple
        Each value, and whether it is marked.
    low, high : float
        The values at the ends of the line.
    title : str
        A text for screen readers.
    box : str or Markup
        SVG that is drawn behind the dots.
    """
    middle = _STRIP_HEIGHT / 2
    dots = Markup().join(
        (
            Markup('<path class="odd" d="M{} {}l5 9h-10z"/>')
            if is_marked
            else Markup('<circle class="dot" cx="{}" cy="{}" r="3.5"/>')
        ).format(_along(value, low, high), middle - 5 if is_marked else middle)
        for value, is_marked in values
    )
    return Markup(
        '<svg class="strip" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/>{}{}</svg>'
    ).format(
        _STRIP_WIDTH,
        _STRIP_HEIGHT,
        title,
        _STRIP_MARGIN,
        _STRIP_WIDTH - _STRIP_MARGIN,
        escape(box),
        dots,
        y=middle,
    )


def dice_strip(agreement: Agreement) -> Markup:
    """Return a strip of the Dice coefficients (0 to 1) of two users' labels of a structure."""
    lowest, highest = agreement.dices[0], agreement.dices[-1]
    title = f"Dice of {agreement.structure} from {lowest:.3f} to {highest:.3f}"
    return strip([(dice, False) for dice in agreement.dices], 0.0, 1.0, title)


def volume_strip(measured: StructureVolumes) -> Markup:
    """Return a strip of the volumes of a structure, from zero to the greatest, over a box between the quartiles."""
    high = measured.volumes[-1].volume
    left, middle, right = (
        _along(value, 0.0, high) for value in (measured.first_quartile, measured.median, measured.third_quartile)
    )
    box = Markup(
        '<rect class="box" x="{}" y="3" width="{}" height="16"/><line class="median" x1="{m}" x2="{m}" y1="3" y2="19"/>'
    ).format(left, round(right - left, 1), m=middle)
    title = f"{measured.structure}: {len(measured.volumes)} volumes, {len(measured.outliers)} of them outliers"
    return strip([(value.volume, bool(value.side)) for value in measured.volumes], 0.0, high, title, box)


def _along(value: float, low: float, high: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return round(_STRIP_MARGIN + share * (_STRIP_WIDTH - 2 * _STRIP_MARGIN), 1)
