"""Writes AIM 4 documents of known contours, as the XNAT-OHIF viewer does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

NAMESPACE = "gme://caCORE.caCORE/4.4/edu.northwestern.radiology.AIM"


@dataclass
class Markup:
    """Corners (n, 2) are in pixels. The centre of the first pixel is at (0, 0), which AIM writes as (0.5, 0.5)."""

    uid: str
    corners: Sequence[Sequence[float]]
    frame: int = 1
    kind: str = "TwoDimensionPolyline"
    included: bool = True
    closed: bool = True

    def xml(self) -> str:
        corners = np.array(self.corners, dtype=float).reshape(-1, 2) + 0.5
        if self.closed and len(corners):
            corners = np.concatenate([corners, corners[:1]])
        points = "".join(
            f'<TwoDimensionSpatialCoordinate><coordinateIndex value="{n}"/><x value="{x:.10g}"/><y value="{y:.10g}"/>'
            "</TwoDimensionSpatialCoordinate>"
            for n, (x, y) in enumerate(corners)
        )
        return (
            f'<MarkupEntity xsi:type="{self.kind}"><includeFlag value="{str(self.included).lower()}"/>'
            f'<lineColour value="10,20,30"/><imageReferenceUid root="{self.uid}"/>'
            f'<referencedFrameNumber value="{self.frame}"/><twoDimensionSpatialCoordinateCollection>{points}'
            "</twoDimensionSpatialCoordinateCollection></MarkupEntity>"
        )


def write_aim(path: Path, rois: dict[str, Sequence[Markup]], head: str = "", root: str = "") -> Path:
    annotations = "".join(
        f"<ImageAnnotation><name value={quoteattr(name)}/><markupEntityCollection>"
        f"{''.join(markup.xml() for markup in markups)}</markupEntityCollection></ImageAnnotation>"
        for name, markups in rois.items()
    )
    root = root or "ImageAnnotationCollection"
    path.write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>{head}<{root} xmlns="{NAMESPACE}" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" aimVersion="AIMv4_0">'
        f"<imageAnnotations>{annotations}</imageAnnotations></{root}>",
        encoding="utf-8",
    )
    return path
