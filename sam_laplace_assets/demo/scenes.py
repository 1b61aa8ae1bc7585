"""Drawn scenes of textured shapes, each a pure function of its seed."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.demo.textures import draw_texture, low_frequency_noise

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

KINDS = ("disc", "polygon", "star", "blob", "ring")
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


class Purpose(IntEnum):
    """What a scene is drawn for; scenes of different purposes never share a seed."""

    TRAINING = 1
    HELD_OUT = 2
    DEMO = 3


@dataclass(frozen=True)
class Scene:
    """One drawn image and what is visible in it.

    image   (H, W, 3) uint8
    labels  (H, W) uint8, 0 for the background, i where the i-th shape is visible
    kinds   kinds[i - 1] is the kind of the i-th shape
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    kinds: tuple[str, ...]

    def visible(self, *, min_fraction: float) -> list[int]:
        """Labels of the shapes that show at least this fraction of the image."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.kinds) + 1)[1:]
        return [int(label) for label in np.flatnonzero(counts >= min_fraction * self.labels.size) + 1]


@dataclass(frozen=True)
class Style:
    """What the shapes of one scene share."""

    grey: bool
    alike: bool
    apart: bool
    textures: tuple[str, ...]
    backdrop: Floats
    colour: Floats
    shadow: float
    radius: tuple[float, float]


def scene_rng(purpose: Purpose, seed: int, index: int) -> np.random.Generator:
    """Random stream of one scene, which no scene of another purpose shares."""
    return np.random.default_rng((int(purpose), seed, index))


def draw_scene(
    rng: np.random.Generator,
    *,
    size: int | tuple[int, int] = 256,
    kinds: tuple[str, ...] = KINDS,
    shapes: tuple[int, int] = (2, 10),
) -> Scene:
    """Draw shapes over a textured background, later ones in front.

    Args:
        rng: where all the randomness comes from.
        size: side, or (H, W), in pixels.
        kinds: the kinds of shape to choose from.
        shapes: smallest and largest number of shapes.
    """
    height, width = (size, size) if isinstance(size, int) else size
    style = draw_style(rng)
    canvas = draw_texture(rng, (height, width), style.backdrop, contrast=rng.uniform(0.02, 0.3))
    labels = np.zeros((height, width), np.uint8)
    count = int(rng.integers(shapes[0], shapes[1] + 1))
    drawn: list[str] = []
    for kind in choose_kinds(rng, kinds, count, alike=style.alike):
        mask = place_shape(rng, kind, style, labels)
        if mask is not None:
            drawn.append(kind)
            paint(rng, canvas, mask, style)
            labels[mask] = len(drawn)
    return Scene(develop(rng, canvas, grey=style.grey), labels, tuple(drawn))


def draw_style(rng: np.random.Generator) -> Style:
    """Some scenes are collections of things alike and apart, as coins on a dark table are; some are a jumble."""
    alike = bool(rng.random() < 0.4)
    backdrop = rng.uniform(0.1, 0.9, 3).astype(np.float32)
    if rng.random() < 0.35:
        backdrop = np.full(3, rng.uniform(0.08, 0.4), np.float32)
    contrast = rng.uniform(0.15, 0.6)
    colour = backdrop + (contrast if backdrop.mean() < rng.uniform(0.3, 0.7) else -contrast)
    names = ("flat", "stripes", "checker", "noise", "gradient", "relief")
    low = rng.uniform(0.06, 0.2)
    return Style(
        grey=bool(rng.random() < 0.35),
        alike=alike,
        apart=bool(rng.random() < (0.8 if alike else 0.35)),
        textures=(str(rng.choice(names, p=(0.15, 0.1, 0.1, 0.2, 0.1, 0.35))),) if alike else names,
        backdrop=backdrop,
        colour=np.clip(colour + rng.normal(0, 0.06, 3), 0.02, 0.98).astype(np.float32),
        shadow=float(rng.uniform(0.2, 0.7)) if rng.random() < 0.35 else 0.0,
        radius=(low, low * 1.3) if alike else (0.05, 0.28),
    )


def choose_kinds(rng: np.random.Generator, kinds: tuple[str, ...], count: int, *, alike: bool) -> list[str]:
    """Kinds of the shapes to draw; things that are alike are most often discs, as coins, cells and fruit are."""
    if not alike:
        return [str(kind) for kind in rng.choice(kinds, count)]
    kind = "disc" if "disc" in kinds and rng.random() < 0.4 else str(rng.choice(kinds))
    return [kind] * count


def place_shape(rng: np.random.Generator, kind: str, style: Style, labels: NDArray[np.uint8]) -> Mask | None:
    """Mask of a new shape; none if the scene keeps its shapes apart and there is no room."""
    for _ in range(12):
        mask = draw_shape(rng, kind, labels.shape, radius=rng.uniform(*style.radius))
        if mask.sum() < 30:
            continue
        if not style.apart or np.mean(labels[mask] > 0) < 0.02:
            return mask
    return None


def draw_shape(rng: np.random.Generator, kind: str, shape: tuple[int, ...], *, radius: float) -> Mask:
    """Mask of one shape somewhere in the image, its radius a fraction of the mean side."""
    pixels = radius * float(np.sqrt(shape[0] * shape[1]))
    centre = rng.uniform(-0.02, 1.02, 2) * np.array(shape[:2])
    turned = draw_outline(rng, kind) @ squash_and_turn(rng, round_only=kind in ("disc", "ring"))
    mask = fill_outline(centre + pixels * turned, shape)
    if kind == "ring":
        mask &= ~fill_outline(centre + pixels * rng.uniform(0.35, 0.65) * turned, shape)
    return mask


def fill_outline(corners: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    """(H, W) mask of the pixels inside an outline of (V, 2) corners (row, column)."""
    from PIL import Image, ImageDraw

    image = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(image).polygon([(column, row) for row, column in corners.tolist()], fill=1)
    return np.array(image, bool)


def draw_outline(rng: np.random.Generator, kind: str) -> NDArray[np.float64]:
    """(V, 2) corners of an outline around the origin, of mean radius about 1."""
    if kind in ("disc", "ring"):
        angles, radii = np.linspace(0, 2 * np.pi, 64, endpoint=False), np.ones(64)
    elif kind == "polygon":
        corners = int(rng.integers(3, 9))
        angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners
        radii = rng.uniform(0.85, 1.25, corners)
    elif kind == "star":
        tips = int(rng.integers(4, 9))
        angles = np.pi * np.arange(2 * tips) / tips
        radii = np.where(np.arange(2 * tips) % 2 == 0, 1.3, rng.uniform(0.5, 0.85))
    elif kind == "blob":
        angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        waves = np.arange(2, 7)
        phases, heights = rng.uniform(0, 2 * np.pi, 5), rng.normal(0, 0.22, 5) / np.sqrt(waves)
        radii = np.clip(1 + (heights[:, None] * np.cos(waves[:, None] * angles + phases[:, None])).sum(0), 0.25, 2)
    else:
        raise ValueError(f"Cannot draw a shape of kind {kind!r}. Known kinds: {', '.join(KINDS)}.")
    return np.stack([radii * np.sin(angles), radii * np.cos(angles)], axis=1)


def squash_and_turn(rng: np.random.Generator, *, round_only: bool) -> NDArray[np.float64]:
    """(2, 2) matrix: a stretch, then a rotation; half of the discs stay circles."""
    stretch = 1.0 if round_only and rng.random() < 0.5 else rng.uniform(0.55, 1.0)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.asarray(np.diag([1 / np.sqrt(stretch), np.sqrt(stretch)]) @ turn, np.float64)


def paint(rng: np.random.Generator, canvas: Floats, mask: Mask, style: Style) -> None:
    """Paint a shape into the canvas: its shadow, its texture, its shading and its rim."""
    from scipy.ndimage import distance_transform_edt

    box = bounding_box(mask)
    inside = mask[box]
    if style.alike:
        colour = np.clip(style.colour + rng.normal(0, 0.03, 3), 0, 1).astype(np.float32)
    else:
        colour = rng.uniform(0.05, 0.95, 3).astype(np.float32)
    name = str(rng.choice(style.textures))
    surface = draw_texture(rng, inside.shape, colour, contrast=rng.uniform(0.05, 0.45), name=name)
    depth = np.asarray(distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1], np.float32)
    if rng.random() < 0.5:
        surface *= shading(rng, inside.shape)[..., None]
    if rng.random() < 0.4:
        rim = np.exp(-depth / rng.uniform(1.0, 4.0)) * rng.uniform(-0.5, 0.35)
        surface *= (1 + rim)[..., None]
    if style.shadow:
        cast_shadow(rng, canvas, mask, style.shadow)
    canvas[box][inside] = surface[inside]


def shading(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """(H, W) factor that falls from a lit side to a dark one."""
    rows, columns = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.4)
    bulge = rng.uniform(0, 0.3) * (rows**2 + columns**2)
    return np.asarray(1 + strength * (np.cos(angle) * rows + np.sin(angle) * columns) - bulge, np.float32)


def cast_shadow(rng: np.random.Generator, canvas: Floats, mask: Mask, strength: float) -> None:
    """Darken the canvas beside the shape."""
    from scipy.ndimage import uniform_filter

    reach = int(rng.integers(2, 8))
    moved = np.roll(mask, rng.integers(-reach, reach + 1, 2), axis=(0, 1))
    soft = uniform_filter(moved.astype(np.float32), 2 * reach + 1)
    canvas *= 1 - strength * soft[..., None]


def develop(rng: np.random.Generator, canvas: Floats, *, grey: bool) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: what a camera sees of the canvas, with light, blur and noise."""
    from scipy.ndimage import gaussian_filter

    height, width = canvas.shape[:2]
    if rng.random() < 0.6:
        canvas = canvas * (1 + 1.2 * (shading(rng, (height, width)) - 1))[..., None]
    if rng.random() < 0.4:
        uneven = low_frequency_noise(rng, (height, width), scale=rng.uniform(0.15, 0.5))
        canvas = canvas + rng.uniform(0.05, 0.3) * (uneven[..., None] - 0.5)
    if grey:
        canvas = np.repeat((canvas @ GREY_WEIGHTS)[..., None], 3, axis=2)
    blur = rng.uniform(0.3, 1.3)
    canvas = gaussian_filter(canvas, (blur, blur, 0))
    grain = rng.standard_normal((height, width, 1 if grey else 3), np.float32) * np.float32(rng.uniform(0.0, 0.05))
    return np.asarray(np.clip((canvas + grain) * 255 + 0.5, 0, 255), np.uint8)


def bounding_box(mask: Mask) -> tuple[slice, slice]:
    """Slices of the smallest box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
