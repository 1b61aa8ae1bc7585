"""Drawn scenes of another kind than the toy SAM was trained on, each a pure function of its seed.

cells     Voronoi cells around random points; the object is one cell, or two that touch
islands   a smooth random field cut at a level; the object is one island, of any outline
leaves    dead leaves: discs, crescents and broken rings that cover one another until no background is left
"""

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.demo.photos import Sample
from sam_laplace_assets.demo.scenes import Mask, bounding_box, develop
from sam_laplace_assets.demo.textures import draw_texture

Labels = NDArray[np.int64]
Floats = NDArray[np.float32]

FAMILIES = ("cells", "islands", "leaves")
STREAM = 11
"""Not one of `scenes.Purpose`, so that no mosaic shares its random stream with a scene."""
FRACTION = (0.02, 0.4)


def mosaic_rng(seed: int, index: int) -> np.random.Generator:
    """Random stream of one mosaic."""
    return np.random.default_rng((STREAM, seed, index))


def draw_mosaic(rng: np.random.Generator, *, family: str, size: int = 256) -> Sample:
    """An image (size, size, 3) and one object in it that covers 2 to 40 % of the pixels.

    Args:
        rng: where all the randomness comes from.
        family: one of `FAMILIES`.
        size: side in pixels, 64 or more.
    """
    if family not in FAMILIES or size < 64:
        raise ValueError(f"Cannot draw {family!r} at {size} pixels: choose one of {', '.join(FAMILIES)}, 64 or more.")
    while True:
        labels = {"cells": draw_cells, "islands": draw_islands, "leaves": draw_leaves}[family](rng, size)
        share = np.bincount(labels.ravel())[1:] / labels.size
        fit = np.flatnonzero((share >= FRACTION[0]) & (share <= FRACTION[1])) + 1
        if fit.size:
            return Sample(colour_in(rng, labels), labels == rng.choice(fit))


def draw_cells(rng: np.random.Generator, size: int) -> Labels:
    """(size, size) labels from 1: nearest of 8 to 24 points under a wavy metric; some neighbours are made one."""
    from scipy.spatial import cKDTree

    count = int(rng.integers(8, 25))
    seeds = rng.uniform(0, size, (count, 2))
    y, x = np.mgrid[:size, :size].astype(np.float64)
    waves = [rng.uniform(0, 0.06) * size * smooth_field(rng, size, length=rng.uniform(0.04, 0.12)) for _ in range(2)]
    nearest = cKDTree(seeds).query(np.stack([y + waves[0], x + waves[1]], axis=-1))[1]
    names = np.arange(1, count + 1)
    for first, second in rng.integers(0, count, (count // 4, 2)):
        if touch(nearest == first, nearest == second):
            names[second] = names[first]
    labels: Labels = names[nearest]
    return labels


def draw_islands(rng: np.random.Generator, size: int) -> Labels:
    """(size, size) labels, 0 for the sea: connected parts of a smooth field above a level, each an object."""
    from scipy.ndimage import label

    field = smooth_field(rng, size, length=rng.uniform(0.05, 0.15))
    field += rng.uniform(0, 0.3) * smooth_field(rng, size, length=0.025)
    labels: Labels = np.asarray(label(field > rng.uniform(0.2, 0.9))[0], np.int64)
    return labels


def draw_leaves(rng: np.random.Generator, size: int) -> Labels:
    """(size, size) labels from 1: leaves of random place, size and form, the last ones in front."""
    labels: Labels = np.ones((size, size), np.int64)
    for name in range(2, int(rng.integers(30, 70))):
        labels[draw_leaf(rng, size)] = name
    return labels


def draw_leaf(rng: np.random.Generator, size: int) -> Mask:
    """(size, size) mask of a disc, a crescent (a disc less another one) or a ring with a piece broken out."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    radius, form = size * rng.uniform(0.06, 0.22), rng.choice(["disc", "crescent", "broken ring"])
    centre, angle = rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi)
    dy, dx = y - centre[0], x - centre[1]
    leaf: Mask = np.hypot(dy, dx) <= radius
    if form == "crescent":
        shift = radius * rng.uniform(0.45, 0.8)
        leaf &= np.hypot(dy - shift * np.sin(angle), dx - shift * np.cos(angle)) > radius * rng.uniform(0.8, 1.1)
    elif form == "broken ring":
        turned = np.angle(np.exp(1j * (np.arctan2(dy, dx) - angle)))
        leaf &= (np.hypot(dy, dx) > radius * rng.uniform(0.45, 0.7)) & (abs(turned) > rng.uniform(0.0, 1.2))
    return leaf


def colour_in(rng: np.random.Generator, labels: Labels) -> NDArray[np.uint8]:
    """(H, W, 3) image: a texture a label, of colours that lie more or less far apart, seen by a camera."""
    centre, spread = rng.uniform(0.25, 0.75, 3), rng.uniform(0.12, 0.35)
    canvas: Floats = np.zeros((*labels.shape, 3), np.float32)
    for name in np.unique(labels):
        colour = np.clip(centre + rng.normal(0, spread, 3), 0.02, 0.98).astype(np.float32)
        box = bounding_box(labels == name)
        inside = labels[box] == name
        canvas[box][inside] = draw_texture(rng, inside.shape, colour, contrast=rng.uniform(0.02, 0.35))[inside]
    return develop(rng, canvas, grey=bool(rng.random() < 0.25))


def smooth_field(rng: np.random.Generator, size: int, *, length: float) -> NDArray[np.float64]:
    """(size, size) of mean 0 and variance 1, smoothed over `length` times the size."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal((size, size)), length * size, mode="wrap")
    smooth: NDArray[np.float64] = (field - field.mean()) / field.std()
    return smooth


def touch(first: Mask, second: Mask) -> bool:
    """Whether two regions have pixels side by side."""
    from scipy.ndimage import binary_dilation

    return bool((binary_dilation(first) & second).any())
