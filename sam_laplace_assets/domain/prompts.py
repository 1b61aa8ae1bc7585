"""Point prompts drawn from a mask, and the Gaussian maps that stand for them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.geometry import LOW_RES

if TYPE_CHECKING:
    import torch

PROMPTS_VERSION = "1"
MAPS_VERSION = "1"

Point = tuple[int, int]


@dataclass(frozen=True)
class PromptSet:
    """Points given to SAM together.

    Attributes:
        promptset_id: number of the set within its sample, from 0.
        pos: (x, y) on the object, in original pixels.
        neg: (x, y) outside it.
    """

    promptset_id: int
    pos: tuple[Point, ...]
    neg: tuple[Point, ...]

    def __post_init__(self) -> None:
        if self.promptset_id < 0:
            raise ValueError(f"Prompt set {self.promptset_id} has a negative number: count from 0.")
        points = (*self.pos, *self.neg)
        if not points:
            raise ValueError(f"Prompt set {self.promptset_id} has no points: give one at least.")
        if any(len(point) != 2 or min(point) < 0 for point in points):
            raise ValueError(f"Prompt set {self.promptset_id} has points that are not (x, y) from (0, 0): {points}.")

    @property
    def k_pairs(self) -> int:
        """Pairs of a positive and a negative point; what an unbalanced set has beyond them is not counted."""
        return min(len(self.pos), len(self.neg))


@dataclass(frozen=True)
class PromptMix:
    """What prompt sets some rows are of: what a head has seen, and what it has not.

    Attributes:
        mode: "pairs" where every row has as many positive as negative points, else "interactive".
        least: fewest points of a row, positive and negative ones together.
        most: the most.
        positive_share: positive points among all points of all rows, from 0 to 1.
        one_click_rows: rows with one point only.
    """

    mode: Literal["pairs", "interactive"]
    least: int
    most: int
    positive_share: float
    one_click_rows: int

    def __post_init__(self) -> None:
        if self.mode not in ("pairs", "interactive"):
            raise ValueError(f"Prompts are drawn in mode pairs or interactive, not {self.mode!r}.")
        if not 1 <= self.least <= self.most or not 0 <= self.positive_share <= 1 or self.one_click_rows < 0:
            raise ValueError(f"{self} cannot be: count 1 point or more, a share from 0 to 1, and no rows below 0.")

    @classmethod
    def of(cls, n_pos: NDArray[np.integer[Any]], n_neg: NDArray[np.integer[Any]]) -> "PromptMix":
        """The mix of rows with these numbers of points.

        Args:
            n_pos: (N,) positive points of each row.
            n_neg: (N,) negative ones.
        """
        points = n_pos + n_neg
        if not points.size:
            raise ValueError("Cannot say what prompt sets no rows are of: give one at least.")
        mode: Literal["pairs", "interactive"] = "pairs" if (n_pos == n_neg).all() else "interactive"
        share = float(n_pos.sum() / points.sum())
        return cls(mode, int(points.min()), int(points.max()), share, int((points == 1).sum()))

    @property
    def in_words(self) -> str:
        """`pairs, 1 to 10 of each`, or `interactive, 1 to 20 clicks, 63 % positive`."""
        if self.mode == "pairs":
            return f"pairs, {self.least // 2} to {self.most // 2} of each"
        return f"interactive, {self.least} to {self.most} clicks, {100 * self.positive_share:.0f} % positive"


def draw_prompt_sets(
    mask: NDArray[np.bool_], *, sample_id: str, count: int, min_pairs: int, max_pairs: int, prompt_seed: int
) -> tuple[PromptSet, ...]:
    """Prompt sets of one sample: k positive and k negative points, k uniform, pixels uniform without replacement.

    Each set has its own stream, from the seed, the sample and its number, so that another sample's or set's coming or
    going changes nothing. A mask too small for `max_pairs` is refused whatever k would have come up.

    Args:
        mask: (H, W) bool, in original pixels.
        sample_id: "<class>/<stem>".
        count: sets to draw.
        min_pairs: least k.
        max_pairs: largest k.
        prompt_seed: seed of all prompts.
    """
    if not 1 <= min_pairs <= max_pairs or count < 0:
        raise ValueError(
            f"Cannot draw {count} prompt sets of {min_pairs} to {max_pairs} pairs: "
            "min_pairs must be 1 or more, max_pairs no less, and the count not negative."
        )
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"The mask of {sample_id} is {mask.dtype} of shape {mask.shape}: give a bool (H, W) array.")
    on, off = np.flatnonzero(mask), np.flatnonzero(~mask)
    _require_pixels(on, max_pairs, f"on the object of {sample_id}")
    _require_pixels(off, max_pairs, f"outside the object of {sample_id}")
    sets = []
    for index in range(count):
        stream = _stream(prompt_seed, sample_id, index)
        k = int(stream.integers(min_pairs, max_pairs, endpoint=True))
        pos, neg = (_draw(pixels, k, stream, mask.shape[1]) for pixels in (on, off))
        sets.append(PromptSet(index, pos, neg))
    return tuple(sets)


def _require_pixels(pixels: NDArray[np.intp], needed: int, where: str) -> None:
    if pixels.size < needed:
        raise ValueError(
            f"Cannot draw {needed} points {where}: its mask has {pixels.size} such pixels. "
            "Lower max_pairs or drop this mask."
        )


def _stream(prompt_seed: int, sample_id: str, index: int) -> np.random.Generator:
    """Random stream of one prompt set, the same in every process and on every machine."""
    name = json.dumps([prompt_seed, sample_id, index]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest(), "big"))


def _draw(pixels: NDArray[np.intp], k: int, stream: np.random.Generator, width: int) -> tuple[Point, ...]:
    """`k` distinct (x, y) among flat pixel indices of an image `width` pixels wide."""
    chosen = pixels[stream.choice(pixels.size, size=k, replace=False)]
    return tuple((int(flat % width), int(flat // width)) for flat in chosen)


def gaussian_map(points: NDArray[Any], *, sigma: float, size: int = LOW_RES) -> NDArray[np.float16]:
    """Gaussians of height 1 around points, summed over the points and clamped to [0, 1].

    exp(-(dx^2 + dy^2) / 2 sigma^2) is a product of a column and a row, so the sum over points is a matrix product.

    Args:
        points: (K, 2) float64, (x, y) in low-res pixels; no points give a map of zeros.
        sigma: standard deviation, in low-res pixels.
        size: side of the map.

    Returns:
        (size, size) float16.
    """
    points = _places(points, sigma=sigma)
    offsets = np.arange(size, dtype=np.float64) - points.T[:, :, None]
    columns, rows = np.exp(-np.square(offsets) / (2 * sigma**2))
    summed: NDArray[np.float64] = rows.T @ columns
    summed[summed < 2.0**-25] = 0.0  # as float16 rounds it, but far faster
    return _rounded_to_half(np.minimum(summed, 1.0))


def gaussian_maps(
    points: Sequence[NDArray[Any]], *, sigma: float, device: "torch.device", size: int = LOW_RES
) -> "torch.Tensor":
    """`gaussian_map` of many sets of points, drawn on a device: the same but for the last bit of a few pixels.

    Args:
        points: B times (K, 2) float64, (x, y) in low-res pixels.
        sigma, size: as in `gaussian_map`.
        device: where they are drawn, and stay.

    Returns:
        (B, size, size) float16.
    """
    import torch

    from sam_laplace_assets.domain.transfer import sent

    places = [_places(one, sigma=sigma) for one in points]
    padded = np.full((len(places), max(map(len, places), default=0), 2), np.inf)  # a Gaussian that far away is 0
    for row, own in zip(padded, places, strict=True):
        row[: len(own)] = own
    offsets = torch.arange(size, dtype=torch.float64, device=device) - sent(torch.from_numpy(padded), device)[..., None]
    columns, rows = torch.exp(-offsets.square() / (2 * sigma**2)).unbind(2)
    return (rows.transpose(1, 2) @ columns).clamp_(max=1.0).half()


def _places(points: NDArray[Any], *, sigma: float) -> NDArray[np.float64]:
    """Points as (K, 2) float64; refused, as sigma is, where no Gaussian can be drawn."""
    places = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"Cannot draw Gaussians of gaussian_sigma {sigma}: it must be above 0.")
    if not np.isfinite(places).all():
        raise ValueError(f"Cannot draw Gaussians around points that are not finite: {places.tolist()}.")
    return places


def _rounded_to_half(values: NDArray[np.float64]) -> NDArray[np.float16]:
    """What `values.astype(np.float16)` gives, bit for bit and eight times as fast, of values that are not negative.

    float32 values become float16 in hardware. On the way there a value is cut off, and its last bit set where something
    was: that keeps the second rounding from going wrong (Boldo and Melquiond 2008, "Emulation of FMA...: rounding to
    odd").
    """
    import torch

    near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= back > values
    bits |= back != values
    rounded: NDArray[np.float16] = torch.from_numpy(near).half().numpy()
    return rounded
