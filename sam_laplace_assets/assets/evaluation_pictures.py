"""Pictures of an evaluation, as PNG: reliability diagrams, risk-coverage curves, and the images that went worst."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sam_laplace_assets.assets import pictures
from sam_laplace_assets.domain.geometry import LOW_RES

TITLES = {"sam": "SAM", "sam_scaled": "SAM, scaled", "head": "head (MAP)", "laplace": "Laplace",
          "laplace_scaled": "Laplace, scaled"}  # fmt: skip
COLOURS = {"sam": "#7f7f7f", "sam_scaled": "#1f77b4", "head": "#2ca02c", "laplace": "#d62728",
           "laplace_scaled": "#9467bd"}  # fmt: skip
CURVES = {("sam", "entropy"): "--", ("head", "entropy"): "--", ("laplace", "entropy"): "-",
          ("laplace", "mutual_information"): "-", ("laplace", "variance"): "-"}  # fmt: skip
CURVE_COLOURS = ("#7f7f7f", "#2ca02c", "#d62728", "#ff7f0e", "#8c564b")
REGIONS = {"image": "whole image", "band": "boundary band"}
LOG_2 = float(np.log(2))
CLICKED = 0.9
LEAST_RISK = 1e-4
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class WorstCase:
    """One prompt set whose mask went wrong.

    Attributes:
        sample_id, promptset_id, n_pos, n_neg: which one, and how many points it has.
        iou: of its mask.
        image: (H, W, 3) uint8, or None where it cannot be read.
        maps: (256, 256) each: mask, predicted, probability, entropy, mutual_information, sam_logits, pos_map, neg_map.
    """

    sample_id: str
    promptset_id: int
    n_pos: int
    n_neg: int
    iou: float
    image: np.ndarray | None
    maps: Mapping[str, np.ndarray]

    @property
    def drawn_on(self) -> str:
        """What lies below the contours."""
        return "SAM's logits" if self.image is None else "image"


def draw_reliability(rows: Rows) -> bytes:
    """Frequency against mean probability in 15 bins, a method a column, whole images above and the band below.

    Args:
        rows: method, region, bin_low, bin_high, mean_probability, frequency, pixels.
    """
    methods = [name for name in TITLES if any(row["method"] == name for row in rows)]
    figure = pictures.new_figure(2.6 * len(methods) + 0.6, 7.2)
    grid = figure.subplots(4, len(methods), sharex=True, sharey="row", squeeze=False,
                           gridspec_kw={"height_ratios": [3, 1, 3, 1]})  # fmt: skip
    for line, region in enumerate(REGIONS):
        for column, method in enumerate(methods):
            bins = [row for row in rows if row["method"] == method and row["region"] == region]
            _draw_diagram(grid[2 * line, column], bins, COLOURS[method], f"{TITLES[method]}, {REGIONS[region]}")
            _draw_counts(grid[2 * line + 1, column], bins, COLOURS[method])
        grid[2 * line, 0].set_ylabel("frequency of foreground")
        grid[2 * line + 1, 0].set_ylabel("pixels")
    for axes in grid[-1]:
        axes.set_xlabel("predicted probability")
    return pictures.as_png(figure)


def _draw_diagram(axes: Any, bins: Rows, colour: str, title: str) -> None:
    mean, frequency, pixels = ([row[name] for row in bins] for name in ("mean_probability", "frequency", "pixels"))
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axes.plot(mean, frequency, color=colour, marker="o", markersize=4)
    axes.set_box_aspect(1)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    gaps = np.abs(np.subtract(mean, frequency))
    told = f"ECE {np.average(gaps, weights=pixels):.3g}" if bins else "no pixels"
    axes.set_title(f"{title}\n{told}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_counts(axes: Any, bins: Rows, colour: str) -> None:
    edges = [row["bin_low"] for row in bins]
    axes.bar(edges, [row["pixels"] for row in bins], width=1 / 15, align="edge", color=colour, alpha=0.6)
    axes.set_yscale("log")
    axes.set_box_aspect(1 / 3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_risk_coverage(rows: Rows) -> bytes:
    """Error rate among the most certain pixels against how many these are, for each uncertainty.

    Args:
        rows: method, region, uncertainty, coverage, risk.
    """
    figure = pictures.new_figure(13, 4.2)
    panels = np.ravel(figure.subplots(1, 2))
    for axes, region in zip(panels, REGIONS, strict=True):
        for colour, ((method, uncertainty), style) in zip(CURVE_COLOURS, CURVES.items(), strict=True):
            its = [row for row in rows
                   if (row["method"], row["uncertainty"], row["region"]) == (method, uncertainty, region)]  # fmt: skip
            axes.plot([row["coverage"] for row in its], [row["risk"] for row in its], style, color=colour,
                      zorder=len(style), label=f"{TITLES[method]}: {uncertainty.replace('_', ' ')}")  # fmt: skip
        _draw_best(axes, [row for row in rows if row["method"] == "laplace" and row["region"] == region])
        axes.set_title(REGIONS[region], fontsize=10)
        axes.set_xlabel("coverage: part of the pixels that is kept, most certain first")
        axes.set_ylabel("risk: part of those that is wrong")
        axes.set_yscale("log" if region == "image" else "linear")  # background decides nearly all of an image
        axes.set_ylim(bottom=LEAST_RISK if region == "image" else 0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return pictures.as_png(figure)


def _draw_best(axes: Any, rows: Rows) -> None:
    """The curve of an uncertainty that would put all errors of the posterior's mask last."""
    errors = [row["risk"] for row in rows if row["coverage"] == 1]
    if errors:
        coverage = np.linspace(0.01, 1, 100)
        best = np.maximum(errors[0] - (1 - coverage), 0) / coverage
        axes.plot(coverage, best, ":", color="black", label="Laplace: best possible")


def draw_worst(case: WorstCase) -> bytes:
    """Image, mask and prediction as contours, predictive probability, entropy and mutual information, side by side."""
    figure = pictures.new_figure(13.2, 2.9)
    panels = np.ravel(figure.subplots(1, 5))
    extent = _extent(case)
    layers = {"probability": (case.maps["probability"], 1.0), "entropy, nats": (case.maps["entropy"], LOG_2),
              "mutual information, nats": _without_peaks(case.maps["mutual_information"])}  # fmt: skip
    for axes, name in zip(panels, [f"{case.drawn_on}, points", "mask blue, prediction orange", *layers], strict=True):
        if name in layers:
            layer, most = layers[name]
            shown = axes.imshow(layer, extent=extent, cmap="gray", vmin=0, vmax=most)
            figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03).ax.tick_params(labelsize=7)
        else:
            _draw_ground(axes, case, extent)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    _draw_points(panels[0], case, extent)
    for axes in panels[1:]:
        _draw_contours(axes, case, extent)
    figure.suptitle(f"{case.sample_id}, prompt set {case.promptset_id}, {case.n_pos} + {case.n_neg} points, "
                    f"IoU {case.iou:.3f}", fontsize=10)  # fmt: skip
    return pictures.as_png(figure)


def _extent(case: WorstCase) -> tuple[float, float, float, float]:
    """All panels in the image's own frame."""
    height, width = case.maps["mask"].shape if case.image is None else case.image.shape[:2]
    return -0.5, width - 0.5, height - 0.5, -0.5


def _draw_ground(axes: Any, case: WorstCase, extent: tuple[float, ...]) -> None:
    if case.image is not None:
        axes.imshow(case.image, extent=extent)
    else:
        limit = pictures.LOGIT_RANGE
        axes.imshow(case.maps["sam_logits"], extent=extent, cmap="gray", vmin=-limit, vmax=limit)


def _without_peaks(layer: np.ndarray) -> tuple[np.ndarray, float]:
    """A map and the value that is drawn white: a few pixels beside a point would leave all others black."""
    return layer, float(np.quantile(layer, 0.995)) or 1.0


def _draw_contours(axes: Any, case: WorstCase, extent: tuple[float, ...]) -> None:
    for name, colour in {"mask": "#19a9ff", "predicted": "#ff8c1a"}.items():
        if 0 < case.maps[name].mean() < 1:
            axes.contour(case.maps[name], levels=[0.5], colors=[colour], linewidths=1.3, extent=extent, origin="upper")


def _draw_points(axes: Any, case: WorstCase, extent: tuple[float, ...]) -> None:
    """Positive points as +, negative ones as x; those whose Gaussians have run into one are drawn as one."""
    for name, (marker, colour) in {"pos_map": ("P", "lime"), "neg_map": ("X", "red")}.items():
        points = _peaks(case.maps[name])
        x, y = (points[:, i] / LOW_RES * size - 0.5 for i, size in ((1, extent[1] + 0.5), (0, extent[2] + 0.5)))
        axes.plot(x, y, marker, color=colour, markeredgecolor="black", markersize=7, linestyle="none")


def _peaks(layer: np.ndarray) -> np.ndarray:
    """(K, 2) centres (y, x) of a map's local maxima, in pixels from the upper left corner of its first pixel."""
    from scipy import ndimage

    top = (layer == ndimage.maximum_filter(layer, size=7)) & (layer > CLICKED)
    labels, n = ndimage.label(top, structure=np.ones((3, 3)))
    return np.array(ndimage.center_of_mass(top, labels, range(1, n + 1))).reshape(-1, 2) + 0.5
