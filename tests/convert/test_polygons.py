"""Filling polygons: one rule for inside, on the contour, along edges, holes and thin shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monailabel_xnat.convert.contours.polygons import ON_CONTOUR, fill_polygons

SHAPE = (12, 10)


def filled(polygons, shape=SHAPE):
    window, mask = fill_polygons([np.array(polygon, dtype=float) for polygon in polygons], shape)
    whole = np.zeros(shape, bool)
    whole[window] = mask
    return whole


def square(x, y, half=0.5):
    return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]


def distance(point, start, end):
    step = end - start
    share = np.clip(np.dot(point - start, step) / np.dot(step, step), 0, 1) if step.any() else 0.0
    return float(np.hypot(*(start + share * step - point)))


corners = st.lists(st.tuples(*[st.floats(-3, 15, allow_nan=False)] * 2), min_size=3, max_size=12)


@settings(max_examples=60, deadline=None)
@given(polygons=st.lists(corners, min_size=1, max_size=3), coarse=st.booleans())
def test_filling_agrees_with_a_crossing_test_for_each_pixel(polygons, coarse):
    polygons = [np.round(np.array(polygon), 0 if coarse else 2) for polygon in polygons]
    found = filled(polygons)
    edges = [edge for polygon in polygons for edge in zip(polygon, np.roll(polygon, -1, axis=0), strict=True)]
    for x, y in np.ndindex(SHAPE):
        nearest = min(distance(np.array((x, y)), start, end) for start, end in edges)
        if nearest <= ON_CONTOUR / 2:
            assert found[x, y]
        elif nearest > 1:
            # Nearer points may be marked by a polygon without area.
            crossings = sum(
                x1 + (y - y1) * (x2 - x1) / (y2 - y1) < x for (x1, y1), (x2, y2) in edges if (y1 <= y) != (y2 <= y)
            )
            assert found[x, y] == (crossings % 2 == 1)


masks = st.lists(st.booleans(), min_size=SHAPE[0] * SHAPE[1], max_size=SHAPE[0] * SHAPE[1])


@settings(max_examples=40, deadline=None)
@given(mask=masks)
def test_contours_along_the_edges_of_pixels_give_exactly_these_pixels(mask):
    mask = np.reshape(mask, SHAPE)
    if mask.any():
        # Edges between two of the squares are passed twice and cancel each other.
        np.testing.assert_array_equal(filled([square(*place) for place in np.argwhere(mask)]), mask)


@pytest.mark.parametrize("off", [0.0, 0.9e-3, -0.9e-3, 1.5e-3, -1.5e-3])
def test_a_centre_within_a_thousandth_of_a_pixel_of_a_contour_belongs_to_the_shape(off):
    outer = [(2 + off, 1), (9 + off, 1), (9 + off, 8), (2 + off, 8)]
    found = filled([outer, square(5, 5, 1.0 + off)])
    left, right = 2 if off < ON_CONTOUR else 3, 9 if off > -ON_CONTOUR else 8
    expected = np.zeros(SHAPE, bool)
    expected[left : right + 1, 1:9] = True
    hole = 1 if off > ON_CONTOUR else 0
    expected[5 - hole : 6 + hole, 5 - hole : 6 + hole] = False
    np.testing.assert_array_equal(found, expected)


def test_a_keyhole_through_centres_closes_its_channel():
    outer, inner = square(5, 5, 4.0), square(5, 5, 2.0)
    keyhole = [*outer, outer[0], inner[0], inner[3], inner[2], inner[1], inner[0]]
    expected = np.zeros(SHAPE, bool)
    expected[1:10, 1:10] = True
    expected[4:7, 4:7] = False
    np.testing.assert_array_equal(filled([keyhole]), expected)


def test_a_tail_of_one_pixel_stays():
    body = [(1, 1), (4, 1), (4, 3), (9, 3), (4, 3), (4, 4), (1, 4)]
    expected = np.zeros(SHAPE, bool)
    expected[1:5, 1:5] = True
    expected[5:10, 3] = True
    np.testing.assert_array_equal(filled([body]), expected)


def test_a_figure_of_eight_is_not_taken_for_a_line():
    found = filled([[(1, 1), (9, 9), (9, 1), (1, 9)]])
    assert found[2, 5]
    assert found[8, 5]
    assert not found[5, 3]
    assert not found[5, 7]


@pytest.mark.parametrize("shape", ["circle", "ellipse", "triangle"])
def test_large_shapes_have_the_area_that_they_should_have(shape):
    angles = np.linspace(0, 2 * np.pi, 3 if shape == "triangle" else 5000, endpoint=False)
    radii = (200.0, 130.0) if shape == "ellipse" else (190.0, 190.0)
    polygon = np.column_stack([250.37 + radii[0] * np.cos(angles), 249.81 + radii[1] * np.sin(angles)])
    area = 3 * np.sqrt(3) / 4 * 190**2 if shape == "triangle" else np.pi * radii[0] * radii[1]
    assert filled([polygon], (512, 512)).sum() == pytest.approx(area, rel=1e-3)


def test_a_line_far_beyond_the_raster_is_cut():
    found = filled([[(-1e9, 3.0), (1e9, 3.0)]])
    assert found[:, 3].all()
    assert found.sum() == SHAPE[0]
    assert not filled([[(50.0, 50.0)]]).any()
