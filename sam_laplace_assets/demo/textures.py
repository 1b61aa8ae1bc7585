"""Textures for drawn scenes: a colour, varied by a field of values in [0, 1]."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TEXTURES = ("flat", "stripes", "checker", "noise", "gradient", "relief")


def draw_texture(
    rng: np.random.Generator, shape: tuple[int, ...], colour: Floats, *, contrast: float, name: str | None = None
) -> Floats:
    """(H, W, 3) float32 around one colour, mixed towards another one that is `contrast` away from it."""
    field = draw_field(rng, shape, str(rng.choice(TEXTURES)) if name is None else name)
    direction = rng.normal(0, 1, 3) + rng.choice([-2.0, 2.0])
    other = colour + contrast * direction / np.abs(direction).mean()
    return np.asarray(colour + (field[..., None] - 0.5) * (other - colour), np.float32)


def draw_field(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> Floats:
    """(H, W) float32 in [0, 1]."""
    if name == "flat":
        return np.full(shape, 0.5, np.float32)
    if name == "noise":
        return low_frequency_noise(rng, shape, scale=rng.uniform(0.05, 0.3))
    if name == "relief":
        return relief(rng, shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    across = np.cos(angle) * columns - np.sin(angle) * rows
    if name == "gradient":
        return np.asarray((along - along.min()) / max(float(np.ptp(along)), 1.0), np.float32)
    period = rng.uniform(5, 24)
    waves = np.sin(2 * np.pi * along / period)
    if name == "checker":
        waves = waves * np.sin(2 * np.pi * across / period)
    elif name != "stripes":
        raise ValueError(f"Cannot draw a texture named {name!r}. Known textures: {', '.join(TEXTURES)}.")
    return np.asarray(0.5 + 0.5 * np.clip(waves * rng.uniform(1, 6), -1, 1), np.float32)


def low_frequency_noise(rng: np.random.Generator, shape: tuple[int, ...], *, scale: float) -> Floats:
    """(H, W) float32 in [0, 1]: a coarse random grid, smoothly enlarged; `scale` is a cell's share of the side."""
    from scipy.ndimage import zoom

    cells = np.maximum(3, np.ceil(1 / scale)).astype(int)
    coarse = rng.random((cells, cells), np.float32)
    fine = zoom(coarse, (shape[0] / cells, shape[1] / cells), order=1, grid_mode=True, mode="nearest")
    return np.asarray(fit(fine, shape), np.float32)


def relief(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """(H, W) float32 in [0, 1]: an embossed surface, lit from one side, as a coin's face is."""
    from scipy.ndimage import uniform_filter

    heights = rng.standard_normal(shape, np.float32)
    width = int(rng.integers(3, 8))
    heights = uniform_filter(uniform_filter(heights, width), width)
    shift = rng.choice([-1, 1], 2) * rng.integers(1, 4, 2)
    slope = heights - np.roll(heights, shift, axis=(0, 1))
    return np.asarray(np.clip(0.5 + 0.25 * slope / (slope.std() + 1e-6), 0, 1), np.float32)


def fit(array: Floats, shape: tuple[int, ...]) -> Floats:
    """Cut or repeat the last row and column, where rounding made an array a pixel too large or too small."""
    missing = [(0, max(0, want - have)) for want, have in zip(shape, array.shape, strict=True)]
    return np.pad(array, missing, mode="edge")[: shape[0], : shape[1]]
