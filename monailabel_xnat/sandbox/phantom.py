"""A made-up abdomen whose anatomy is known exactly. The CT series of the demo show it.

The anatomy is defined in space, not on a grid: for any points, it returns CT numbers and labels. So axial, oblique
and localizer series of one subject show the same body, and the true label map fits each of them. Coordinates are
the patient's, in mm, LPS (x to the left, y to the back, z to the head), with the origin in the middle of the body.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

#: Voxel value of each organ in a label map; 0 is everything else.
LABELS: dict[str, int] = {"liver": 1, "spleen": 2, "kidneys": 3}

_AIR, _LUNG, _FAT, _FLUID, _MUSCLE, _BONE = -1000.0, -840.0, -95.0, 12.0, 52.0, 320.0
_ENDLESS = 1e5


@dataclass(frozen=True)
class _Blob:
    """An organ or a part of one: all points within a superquadric."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: float
    label: int = 0
    exponent: float = 2.0
    wobble: bool = True


#: The average body. The parts are painted in this order: a later part covers the earlier ones.
_BLOBS = (
    _Blob((-72, 2, 122), (58, 82, 66), _LUNG),
    _Blob((72, 2, 122), (58, 82, 66), _LUNG),
    _Blob((0, -12, 112), (42, 48, 38), 110),
    _Blob((0, 72, 0), (21, 19, _ENDLESS), _BONE, wobble=False),
    _Blob((0, 92, 0), (9, 9, _ENDLESS), _FLUID, wobble=False),
    _Blob((0, 104, 0), (6, 12, _ENDLESS), _BONE, wobble=False),
    _Blob((-42, 66, -70), (19, 17, 75), _MUSCLE),
    _Blob((42, 66, -70), (19, 17, 75), _MUSCLE),
    _Blob((48, -38, 34), (40, 34, 38), 35),
    _Blob((48, -54, 34), (26, 14, 26), -620),
    _Blob((4, -12, -2), (52, 12, 12), 88),
    _Blob((-70, -6, 22), (66, 66, 58), 108, LABELS["liver"], 2.6),
    _Blob((-14, -44, 34), (58, 28, 30), 108, LABELS["liver"]),
    _Blob((-46, -52, -14), (15, 18, 20), _FLUID),
    _Blob((100, 32, 40), (26, 40, 42), 124, LABELS["spleen"], 2.4),
    _Blob((-60, 46, -34), (25, 23, 46), 168, LABELS["kidneys"]),
    _Blob((60, 46, -28), (25, 23, 46), 168, LABELS["kidneys"]),
    _Blob((-50, 42, -34), (9, 8, 18), 30, LABELS["kidneys"]),
    _Blob((50, 42, -28), (9, 8, 18), 30, LABELS["kidneys"]),
    _Blob((10, 44, 0), (11, 11, _ENDLESS), 172),
    _Blob((-20, 40, 0), (12, 10, _ENDLESS), 128),
)

_BOWEL_LOOPS = 20


class Phantom:
    """The body of one subject: the average anatomy, with random variation that is natural.

    Parameters
    ----------
    seed
        The same seed makes the same body.
    """

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng([seed, 0xC7])
        self._girth = np.array([160.0, 112.0]) * random.normal(1, 0.04, 2)
        self._fat = random.uniform(9, 17)
        self._blobs = [*_bowel(random), *(_vary(blob, random) for blob in _BLOBS)]
        self._rib_phase = random.uniform(0, 2 * np.pi)
        self._bend = _Waves(random, count=6, lengths=(90.0, 220.0), amplitude=5.0)
        self._texture = _Waves(random, count=10, lengths=(14.0, 45.0), amplitude=4.0)

    def sample(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return what is at each point.

        Parameters
        ----------
        points
            Positions (..., 3), mm, LPS.

        Returns
        -------
        hu
            CT numbers (...), HU, without noise.
        labels
            Values of `LABELS` (...), 0 outside these organs.
        """
        flat = points.reshape(-1, 3)
        inside = _depth(flat, self._girth) > 0
        hu = np.full(len(flat), _AIR, np.float32)
        labels = np.zeros(len(flat), np.uint8)
        hu[inside], labels[inside] = self._sample_body(flat[inside])
        return hu.reshape(points.shape[:-1]), labels.reshape(points.shape[:-1])

    def _sample_body(self, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return what is at points (n, 3) that all lie under the skin."""
        depth = _depth(points, self._girth)
        cavity = depth > self._fat + 11
        hu = np.full(len(points), _FAT, np.float32)
        labels = np.zeros(len(points), np.uint8)
        hu[depth > self._fat] = _MUSCLE
        hu[cavity] = _FAT + 25
        hu[self._ribs(points, depth)] = _BONE
        straight, bent = _columns(points), _columns(points + self._bend(points))
        for blob in self._blobs:
            within = _within(blob, bent) & cavity if blob.wobble else _within(blob, straight)
            hu[within] = blob.hu
            labels[within] = blob.label
        solid = hu > _FAT
        hu[solid] += self._texture(points[solid])[:, 0]
        return hu, labels

    def _ribs(self, points: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points lie in the ribs: bands in the wall of the chest that slope down to the front."""
        x, y, z = points.T
        band = np.sin(2 * np.pi * (z - 0.35 * y) / 30 + self._rib_phase) > 0.45
        wall = (depth > self._fat + 2) & (depth < self._fat + 10)
        ribs: NDArray[np.bool_] = band & wall & (z > -30) & (np.abs(x) > 35)
        return ribs


def add_noise(hu: NDArray[np.float32], sigma: float, seed: int) -> NDArray[np.int16]:
    """Return CT numbers with the noise of a CT scanner, which is a little smooth within a slice, rounded.

    Parameters
    ----------
    hu
        CT numbers (slices, rows, columns), HU.
    sigma
        Standard deviation of the noise, HU.
    seed
        The same seed makes the same noise.

    Returns
    -------
    numpy.ndarray
        CT numbers (slices, rows, columns), int16, -1024..3071 HU.
    """
    grain = np.random.default_rng([seed, 0x4E]).normal(0, 1, hu.shape).astype(np.float32)
    grain += 0.5 * (np.roll(grain, 1, axis=-1) + np.roll(grain, 1, axis=-2))
    noisy = hu + sigma * grain / np.float32(grain.std())
    clipped: NDArray[np.int16] = np.rint(noisy).clip(-1024, 3071).astype(np.int16)
    return clipped


class _Waves:
    """A smooth random vector field: the sum of a few plane waves."""

    def __init__(self, random: np.random.Generator, count: int, lengths: tuple[float, float], amplitude: float) -> None:
        directions = random.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        self._numbers = 2 * np.pi * directions / random.uniform(*lengths, size=(count, 1))
        self._phases = random.uniform(0, 2 * np.pi, count)
        self._pushes = random.normal(0, amplitude * np.sqrt(2 / count), size=(count, 3))

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values (n, 3) at points (n, 3), mm. The values are in the unit of the amplitude."""
        values: NDArray[np.float64] = np.sin(points @ self._numbers.T + self._phases) @ self._pushes
        return values


def _depth(points: NDArray[np.float64], girth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return roughly how far below the skin points (n, 3) lie, mm; negative outside the body."""
    x, y, z = points.T
    waist = 1 + 0.03 * np.cos(z / 60)
    radius = (np.abs(x / (girth[0] * waist)) ** 2.4 + np.abs(y / (girth[1] * waist)) ** 2.4) ** (1 / 2.4)
    depth: NDArray[np.float64] = (1 - radius) * girth.mean()
    return depth


def _columns(points: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """Return points (n, 3) as separate x, y and z, which is quicker to compute with."""
    return [np.ascontiguousarray(column, np.float32) for column in points.T]


def _within(blob: _Blob, columns: list[NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Return which points lie inside a superquadric."""
    squared = blob.exponent == 2.0
    total = np.zeros(len(columns[0]), np.float32)
    for column, centre, radius in zip(columns, blob.centre, blob.radii, strict=True):
        scaled = np.abs(column - np.float32(centre)) / np.float32(radius)
        total += scaled * scaled if squared else scaled ** np.float32(blob.exponent)
    inside: NDArray[np.bool_] = total < 1
    return inside


def _vary(blob: _Blob, random: np.random.Generator) -> _Blob:
    """Return a part of the average body, moved, scaled and brightened at random."""
    if not blob.wobble:
        return blob
    centre = np.asarray(blob.centre) + random.normal(0, 4, 3)
    radii = np.asarray(blob.radii) * random.normal(1, 0.06, 3).clip(0.8, 1.2)
    return replace(blob, centre=tuple(centre), radii=tuple(radii), hu=blob.hu + random.normal(0, 8))


def _bowel(random: np.random.Generator) -> list[_Blob]:
    """Return bowel loops, scattered over the lower abdomen, each with a wall and contents, contrast medium or gas."""
    loops = []
    for _ in range(_BOWEL_LOOPS):
        centre = (random.uniform(-95, 95), random.uniform(-75, 5), random.uniform(-115, 0))
        radii = tuple(random.uniform(11, 27, 3))
        loops.append(_Blob(centre, radii, float(random.choice([-500.0, 25.0, 45.0, 70.0, 170.0]))))
    return loops
