"""Pictures of how click strategies stand: curves, differences with their intervals, and the clicks themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sam_laplace_assets.assets import pictures
from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.interaction import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

EMPHASISED = {"oracle": "black", "random": "tab:orange"}
DEFAULT_COLOUR = "tab:blue"
OTHERS = ("#9c9ede", "#8c6d31", "#b5cf6b", "#ce6dbd", "#7f7f7f", "#17becf", "#d6616b", "#637939")
POSITIVE, NEGATIVE, TRUTH, PREDICTED = "#1a9850", "#d73027", "#ffd92f", "#00e5ff"
FARTHEST = 0.25
"""Largest difference that the axis shows; beyond it stands an arrow head and the number."""
LEAST_GAP = 0.045
"""Between two labels, as a share of the axis."""


@dataclass(frozen=True, eq=False)
class Played:
    """What one strategy did on one image.

    Attributes:
        sample_id, strategy: which.
        image: (H, W, 3) uint8.
        truth: (h, w) bool.
        mask: (256, 256) bool, the head's after the last click.
        trace: its clicks.
    """

    sample_id: str
    strategy: str
    image: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    trace: Trace


def draw_curves(curves: Sequence[Row], summary: Sequence[Row], *, default: str) -> bytes:
    """Mean IoU after each click: the head's masks on the left, SAM's on the right, named at the curves' ends.

    The default strategy has its interval; between strategies, paired differences tell more than two intervals would.
    """
    figure = pictures.new_figure(12.5, 5)
    colours = colours_of([row["strategy"] for row in summary], default)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, source, style in zip(panels, ("head", "sam"), ("-", "--"), strict=True):
        its = [row for row in curves if row["source"] == source]
        ends = {}
        for name, colour in colours.items():
            rows = [row for row in its if row["strategy"] == name]
            clicks, means = [row["click"] for row in rows], [row["mean_iou"] for row in rows]
            bold = name in EMPHASISED or name == default
            axes.plot(clicks, means, style, color=colour, linewidth=2.4 if bold else 1.1, zorder=3 if bold else 2)
            if name == default and rows[0]["low"] is not None:
                axes.fill_between(clicks, [row["low"] for row in rows], [row["high"] for row in rows], color=colour,
                                  alpha=0.10, linewidth=0)  # fmt: skip
            ends[name] = (clicks[-1], means[-1])
        _name_ends(axes, ends, colours, default)
        _plain(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("clicks")
        axes.set_title({"head": "the head's masks", "sam": "SAM's masks"}[source], fontsize=10)
    panels[0].set_ylabel("mean IoU over images")
    return pictures.as_png(figure)


def draw_differences(rows: Sequence[Row], *, default: str) -> bytes:
    """Differences in area of the head's masks to each rival, with their intervals: one panel a rival."""
    shown = [row for row in rows if (row["source"], row["metric"]) == ("head", "area")]
    rivals, names = (list(dict.fromkeys(row[key] for row in shown)) for key in ("against", "strategy"))
    figure = pictures.new_figure(3.1 * max(len(rivals), 1) + 1.6, 0.34 * len(names) + 1.3)
    reach = _reach(shown)
    for axes, rival in zip(np.ravel(figure.subplots(1, max(len(rivals), 1), sharey=True, sharex=True)), rivals,
                           strict=False):  # fmt: skip
        for row in (row for row in shown if row["against"] == rival):
            _draw_interval(axes, row, names.index(row["strategy"]), reach)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlim(-reach, 2.5 * reach)
        axes.set_xticks([tick for tick in axes.get_xticks() if abs(tick) <= reach])
        axes.set_xlim(-reach, 2.5 * reach)
        axes.set_yticks(range(len(names)), [f"{name} (default)" if name == default else name for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(f"minus {rival}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.6)
        _plain(axes)
    figure.supxlabel("difference in area under mean IoU, the head's masks   blue: better, red: worse, "
                     "grey: cannot be told", fontsize=8)  # fmt: skip
    return pictures.as_png(figure)


def _reach(rows: Sequence[Row]) -> float:
    """How far the axis goes: as far as the intervals, but no further than lets small differences be seen."""
    ends = [abs(row[end]) for row in rows for end in ("low", "high") if row[end] is not None]
    return min(max([1.1 * end for end in ends], default=FARTHEST), FARTHEST)


def _draw_interval(axes: "Axes", row: Row, at: int, reach: float) -> None:
    """A dot and its interval, with the number on the right; an arrow head where it lies beyond the axis."""
    low, high = (row["difference"] if row[end] is None else row[end] for end in ("low", "high"))
    told = row["low"] is not None
    colour = "tab:blue" if told and low > 0 else "tab:red" if told and high < 0 else "#7f7f7f"
    place = float(np.clip(row["difference"], -0.97 * reach, 0.97 * reach))
    axes.plot(np.clip([low, high], -reach, reach), [at, at], color=colour, linewidth=1.8, solid_capstyle="butt")
    axes.plot(place, at, "o" if place == row["difference"] else "<" if place < 0 else ">", color=colour, markersize=5)
    interval = f"{row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]" if told else f"{row['difference']:+.3f}"
    axes.annotate(interval, (2.46 * reach, at), fontsize=6.5, color=colour, ha="right", va="center")


def draw_clicks(sheet: Sequence[Sequence[Played]]) -> bytes:
    """A line an image, a column a strategy: the image with truth, the last mask, and the clicks in their order."""
    columns = max(len(line) for line in sheet)
    figure = pictures.new_figure(3.1 * columns, 3.1 * _tallness(sheet) * len(sheet) + 0.3)
    for line, places in zip(sheet, figure.subplots(len(sheet), columns, squeeze=False), strict=True):
        for axes, played in zip(places, line, strict=True):
            _draw_played(axes, played)
        places[0].set_ylabel(line[0].sample_id, fontsize=8)
    figure.suptitle("yellow: the true outline   blue: that of the head's last mask   "
                    "green: clicks on the object, red: beside it, in their order", fontsize=8)  # fmt: skip
    return pictures.as_png(figure)


def _tallness(sheet: Sequence[Sequence[Played]]) -> float:
    """Height to width of the tallest image, kept within what fits a page; with room for its title."""
    return float(np.clip(max(line[0].image.shape[0] / line[0].image.shape[1] for line in sheet), 0.6, 1.2)) + 0.08


def _draw_played(axes: "Axes", played: Played) -> None:
    height, width = played.image.shape[:2]
    axes.imshow(played.image, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    for mask, colour in ((played.truth, TRUTH), (played.mask, PREDICTED)):
        _outline(axes, mask, colour, height=height, width=width)
    for at, ((x, y), positive) in enumerate(zip(played.trace.points, played.trace.labels, strict=True), start=1):
        place = ((x + 0.5) * width / LOW_RES - 0.5, (y + 0.5) * height / LOW_RES - 0.5)
        axes.plot(*place, "o", color=POSITIVE if positive else NEGATIVE, markersize=9, markeredgecolor="white",
                  markeredgewidth=0.5, zorder=2 + at, clip_on=False)  # fmt: skip
        axes.text(*place, str(at), color="white", fontsize=5.5, ha="center", va="center", weight="bold", zorder=2 + at)
    axes.set_title(f"{played.strategy}, IoU {played.trace.ious[-1]:.3f}", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def _outline(axes: "Axes", mask: np.ndarray, colour: str, *, height: int, width: int) -> None:
    """The border of a mask of any size over an image of this size; of an empty or full one, nothing."""
    if not mask.any() or mask.all():
        return
    rows, columns = mask.shape
    x, y = (np.arange(columns) + 0.5) * width / columns - 0.5, (np.arange(rows) + 0.5) * height / rows - 0.5
    if min(mask.shape) > 1:
        axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.4)


def colours_of(names: Sequence[str], default: str) -> dict[str, str]:
    """A colour for each strategy, in the order in which they are drawn; the emphasised ones come last."""
    distinct = list(dict.fromkeys(names))
    quiet = [name for name in distinct if name not in EMPHASISED and name != default]
    colours = {name: OTHERS[at % len(OTHERS)] for at, name in enumerate(quiet)}
    bold = {**EMPHASISED, default: DEFAULT_COLOUR}
    return colours | {name: bold[name] for name in distinct if name in bold}


def _name_ends(axes: "Axes", ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str], default: str) -> None:
    """Names beside the ends of curves, moved apart where they would lie on each other."""
    low, high = axes.get_ylim()
    gap = LEAST_GAP * (high - low)
    order = sorted(ends, key=lambda name: ends[name][1])
    heights = spread([ends[name][1] for name in order], gap, low=low, high=high)
    for name, height in zip(order, heights, strict=True):
        clicks, end = ends[name]
        leader = {"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "relpos": (0, 0.5)}
        axes.annotate(f"{name} (default)" if name == default else name, (clicks, end), arrowprops=leader,
                      xytext=(clicks * 1.03 + 0.2, height), fontsize=8, color=colours[name], va="center",
                      weight="bold" if name in EMPHASISED or name == default else "normal",
                      annotation_clip=False)  # fmt: skip


def spread(heights: Sequence[float], gap: float, *, low: float, high: float) -> list[float]:
    """Ascending heights moved apart to at least `gap`, from `low` to `high` if there is room for all."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap if placed else low))
    top = high
    for at in range(len(placed) - 1, -1, -1):
        placed[at] = top = min(placed[at], top)
        top -= gap
    return placed


def _plain(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
