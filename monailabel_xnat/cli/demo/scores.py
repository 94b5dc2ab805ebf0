"""How good the predictions are, and a picture of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

COLOURS = ("#00000000", "#d1495b", "#edae49", "#30638e", "#66a182")
WINDOW_HU = (-160.0, 240.0)


def dice(truth: NDArray[np.int64], found: NDArray[np.int64], value: int) -> float:
    """Measure how well two label maps agree on one value: 0 nowhere, 1 everywhere."""
    wanted, got = truth == value, found == value
    total = int(wanted.sum() + got.sum())
    return 2.0 * int((wanted & got).sum()) / total if total else 1.0


def dice_by_organ(truth: Path, found: Path, labels: dict[str, int]) -> dict[str, float]:
    """Compare two label files, which must lie on one grid.

    Raises
    ------
    RuntimeError
        If they do not.
    """
    one: Any = nib.load(truth)
    other: Any = nib.load(found)
    if one.shape != other.shape or not np.allclose(one.affine, other.affine, atol=1e-2):
        raise RuntimeError(f"{found} is not on the grid of {truth}: {other.shape} instead of {one.shape}")
    arrays = [np.asarray(image.dataobj).astype(np.int64) for image in (one, other)]
    return {name: dice(arrays[0], arrays[1], value) for name, value in labels.items()}


def table(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> str:
    """Write the Dice of each case and organ, before and after training."""
    organs = list(next(iter(before.values())))
    head = "  case    " + "".join(f"{organ:>18}" for organ in [*organs, "mean"])
    lines = [head]
    for case in before:
        values = [*(before[case][organ] for organ in organs), mean_dice({case: before[case]})]
        better = [*(after[case][organ] for organ in organs), mean_dice({case: after[case]})]
        lines.append(
            f"  {case:<8}" + "".join(f"{one:>9.3f} -> {two:.3f}" for one, two in zip(values, better, strict=True))
        )
    return "\n".join(lines)


def mean_dice(scores: dict[str, dict[str, float]]) -> float:
    """Average over cases and organs."""
    return float(np.mean([value for organs in scores.values() for value in organs.values()]))


def picture(target: Path, image: Path, maps: dict[str, Path], labels: dict[str, int], title: str) -> Path | None:
    """Draw one axial and one coronal slice of an image, plain and under each label map.

    Returns
    -------
    Path or None
        `target`, or None where matplotlib is not installed, which only this picture needs.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    canonical: Any = nib.as_closest_canonical
    volume = canonical(nib.load(image))
    voxels = np.asarray(volume.dataobj, dtype=np.float32)
    spacing = volume.header.get_zooms()
    overlays = {name: np.asarray(canonical(nib.load(path)).dataobj) for name, path in maps.items()}
    truth = next(iter(overlays.values()))
    axial = int(np.argmax((truth > 0).sum(axis=(0, 1))))
    coronal = int(np.argmax((truth > 0).sum(axis=(0, 2))))
    columns = [("image", None), *overlays.items()]
    heights = [voxels.shape[1] * spacing[1], voxels.shape[2] * spacing[2]]
    size = (3.0 * len(columns), 3.4 * sum(heights) / (voxels.shape[0] * spacing[0]) + 1.0)
    rows = {"height_ratios": heights}
    figure, axes = plt.subplots(2, len(columns), figsize=size, squeeze=False, gridspec_kw=rows, layout="constrained")
    colours = ListedColormap(COLOURS)
    for column, (name, overlay) in enumerate(columns):
        cuts: tuple[tuple[Any, float], ...] = (
            (np.s_[:, :, axial], spacing[1] / spacing[0]),
            (np.s_[:, coronal, :], spacing[2] / spacing[0]),
        )
        for row, (cut, ratio) in enumerate(cuts):
            axis = axes[row][column]
            axis.imshow(voxels[cut].T[::-1, ::-1], cmap="gray", vmin=WINDOW_HU[0], vmax=WINDOW_HU[1], aspect=ratio)
            if overlay is not None:
                shown = overlay[cut].T[::-1, ::-1]
                axis.imshow(
                    shown,
                    cmap=colours,
                    vmin=0,
                    vmax=len(COLOURS) - 1,
                    alpha=0.55,
                    aspect=ratio,
                    interpolation="nearest",
                )
            axis.set_axis_off()
        axes[0][column].set_title(name)
    handles = [Rectangle((0, 0), 1, 1, color=COLOURS[value]) for value in labels.values()]
    figure.legend(handles, list(labels), loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title)
    figure.savefig(target, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return target
