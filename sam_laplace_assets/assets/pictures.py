"""Pictures for reports, as PNG: panels, curves and histograms, drawn without a screen."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOGIT_RANGE = 10.0
SHEET_WIDTH = 1100


def draw_panels(image: np.ndarray, mask: np.ndarray, arrays: Mapping[str, np.ndarray], *, title: str) -> bytes:
    """Image, mask, SAM mask, SAM logits, positive map, negative map, side by side.

    Args:
        image: (H, W, 3) uint8.
        mask: (h, w) bool.
        arrays: logits_256, pos_map and neg_map, each (256, 256).
        title: what they are of.
    """
    figure = new_figure(13.2, 2.5)
    logits = arrays["logits_256"].astype(np.float32)
    extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)  # all panels in the image's own frame
    grey: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    panels: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "image": (image, {}), "mask": (mask, grey), "SAM mask": (logits > 0, grey),
        "SAM logits": (logits, {"cmap": "RdBu_r", "vmin": -LOGIT_RANGE, "vmax": LOGIT_RANGE}),
        "positive map": (arrays["pos_map"].astype(np.float32), {"cmap": "magma", "vmin": 0, "vmax": 1}),
        "negative map": (arrays["neg_map"].astype(np.float32), {"cmap": "magma", "vmin": 0, "vmax": 1}),
    }  # fmt: skip
    for axes, (name, (array, style)) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        axes.imshow(array, extent=extent, aspect="equal", **style)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return as_png(figure)


def contact_sheet(pngs: Sequence[bytes]) -> bytes:
    """Pictures one below the other, small enough for a page."""
    from PIL import Image

    pictures = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    sized = [one.resize((SHEET_WIDTH, round(one.height * SHEET_WIDTH / one.width))) for one in pictures]
    sheet = Image.new("RGB", (SHEET_WIDTH, sum(one.height for one in sized)), "white")
    top = 0
    for one in sized:
        sheet.paste(one, (0, top))
        top += one.height
    buffer = io.BytesIO()
    sheet.quantize(128).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def draw_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """Losses and validation scores by epoch."""
    figure = new_figure(9, 3)
    epochs = [record["epoch"] for record in history]
    groups = {"loss": ("train_loss", "val_loss"), "validation": ("val_iou", "val_dice")}
    for axes, (name, curves) in zip(np.ravel(figure.subplots(1, 2)), groups.items(), strict=True):
        for curve in curves:
            axes.plot(epochs, [record[curve] for record in history], marker="o", markersize=3, label=curve)
        axes.set_xlabel("epoch")
        axes.set_title(name, fontsize=10)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return as_png(figure)


def draw_histograms(histograms: Mapping[str, Any]) -> bytes:
    """Weights and gradients of each parameter, a histogram each."""
    names = sorted(histograms)
    columns = max(len(names) // 2, 1)
    figure = new_figure(2.3 * columns, 4.2)
    grid = np.ravel(figure.subplots(2, columns, squeeze=False))
    for axes, name in zip(grid, [*(n for n in names if n.startswith("weights")),
                                 *(n for n in names if not n.startswith("weights"))], strict=False):  # fmt: skip
        one = histograms[name]
        axes.stairs(one.counts, one.edges, fill=True)
        axes.set_title(name, fontsize=7)
        axes.tick_params(labelsize=6)
        axes.spines[["top", "right"]].set_visible(False)
    return as_png(figure)


def draw_prior_search(grid: Sequence[float], val_nll: Sequence[float], *, map_nll: float, chosen: float) -> bytes:
    """Validation NLL against prior precision, beside that of the head without a posterior."""
    figure = new_figure(5, 3)
    axes = figure.subplots()
    axes.semilogx(grid, val_nll, marker="o", label="Laplace predictive")
    axes.axhline(map_nll, color="gray", linestyle=":", label="head (MAP)")
    axes.axvline(chosen, color="tab:green", linestyle="--", label=f"chosen: {chosen:g}")
    axes.set_xlabel("prior precision")
    axes.set_ylabel("validation NLL, nats a pixel")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return as_png(figure)


def draw_by_precision(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    ylabel: str,
    level: tuple[str, float] | None = None,
    chosen: float | None = None,
) -> bytes:
    """Curves of (prior precision, value), by label.

    Args:
        curves: label -> points.
        ylabel: what the values are.
        level: label and value that they are compared with.
        chosen: a precision to be marked.
    """
    figure = new_figure(7.5, 4)
    axes = figure.subplots()
    for label, points in curves.items():
        axes.semilogx(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    if level is not None:
        axes.axhline(level[1], color="gray", linestyle=":", label=level[0])
    if chosen is not None:
        axes.axvline(chosen, color="tab:green", linestyle="--", label=f"chosen: {chosen:.4g}")
    axes.set_xlabel("prior precision")
    axes.set_ylabel(ylabel)
    axes.ticklabel_format(axis="y", useOffset=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return as_png(figure)


def new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def as_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
