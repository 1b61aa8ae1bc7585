"""What a reader wants to see of an evaluation that lies on disk: in the UI and in MLflow."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from sam_laplace_assets.domain.plan import Report
from sam_laplace_assets.storage.evaluation import ASSET, TABLES, read_tables
from sam_laplace_assets.storage.reports import SUMMARY, picture, require_facts
from sam_laplace_assets.storage.tables import Format, path_of

if TYPE_CHECKING:
    import pandas as pd

PICTURES = ("reliability", "risk_coverage", "worst_images")
COLUMNS = ("nll", "brier", "ece", "adaptive_ece", "iou", "dice")
SHOWN = {"per_image": "scores, means over images", "band_per_image": "scores in the boundary band, means over images",
         "pooled": "scores of all pixels alike", "band_pooled": "scores of the band's pixels alike"}  # fmt: skip
RANKED = ("auroc", "aurc")
SMALL = 5_000_000
"""Bytes up to which a table is kept with the tracked run."""


def read_evaluation(folder: Path, *, table_format: Format) -> Report:
    """The report on a split, its verdict first. Raises `NotMade` or `TableRefused`."""
    facts = require_facts(folder, name=f"{ASSET}[{folder.name}]")
    found, scores = read_tables(folder, table_format), facts["scores"]
    tables = {title: list(_score_table(scores[scope])) for scope, title in SHOWN.items()}
    tables |= {"does uncertainty find the errors": list(_error_table(scores)),
               "differences in NLL, means over images": _differences(found["differences"])}  # fmt: skip
    paths = [*(path_of(folder / name, table_format) for name in TABLES), folder / SUMMARY]
    return Report(
        warnings=facts["warnings"], facts=_shown_facts(facts, folder), metrics=_metrics(facts), tables=tables,
        pictures={name.replace("_", " "): picture(folder, name) for name in PICTURES},
        params={name: facts[name] for name in ("champion", "band", "resamples", "confidence", "seed")},
        files={path.name: path.read_bytes() for path in paths if path.stat().st_size <= SMALL},
    )  # fmt: skip


def _shown_facts(facts: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    told = {"verdict": facts["verdict"]}
    if further := [warning for warning in facts["warnings"] if warning != facts["verdict"]]:
        told["warnings"] = " ".join(further)
    told |= {"champion": facts["champion"], "images": facts["images"], "prompt sets": facts["rows"],
             "factor on SAM's logits": facts["sam_scale"]["value"]}  # fmt: skip
    if facts["laplace_scale"] is not None:
        told["factor on the posterior's logits"] = facts["laplace_scale"]
    if facts["left_out"]:
        told["left out"] = _left_out(facts["left_out"])
    return {**told, "folder": dg.MetadataValue.path(folder)}


def _left_out(left_out: Mapping[str, int]) -> str:
    """`2 images without a value: sam band_per_image nll, ...`, by number of images."""
    by_number: dict[int, list[str]] = {}
    for name, images in left_out.items():
        by_number.setdefault(images, []).append(name)
    return "; ".join(f"{images} image{'s' if images > 1 else ''} without a value: {', '.join(names)}"
                     for images, names in sorted(by_number.items()))  # fmt: skip


def _score_table(scores: Mapping[str, Mapping[str, Sequence[Any]]]) -> Iterator[dict[str, str]]:
    for method, its in scores.items():
        yield {"method": method} | {name: _told(its[name]) for name in COLUMNS}


def _error_table(scores: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """AUROC and AURC of each uncertainty for wrong pixels, a mean over images."""
    for method, its in scores["per_image"].items():
        for name in (one.removeprefix("auroc_") for one in its if one.startswith("auroc_")):
            columns = {"": its, "in the band: ": scores["band_per_image"][method]}
            yield {"method": method, "uncertainty": name.replace("_", " ")} | {
                f"{where}{area.upper()}": _told(its_scores[f"{area}_{name}"])
                for where, its_scores in columns.items() for area in RANKED
            }  # fmt: skip


def _differences(found: "pd.DataFrame") -> list[dict[str, str]]:
    chosen = found[(found["metric"] == "nll") & (found["scope"] == "per_image")]
    return [{"ours": row["ours"], "theirs": row["theirs"], "ours is": row["ours_is"] or "undecided",
             "difference": _told([row["value"], row["low"], row["high"]], sign="+")}
            for row in chosen.astype(object).where(chosen.notna(), None).to_dict("records")]  # fmt: skip


def _told(estimate: Sequence[float | None], *, sign: str = "") -> str:
    """`0.0339 [0.0251, 0.0412]`."""
    value, low, high = estimate
    if value is None:
        return "none"
    interval = "" if low is None or high is None else f" [{low:{sign}.3g}, {high:{sign}.3g}]"
    return f"{value:{sign}.3g}{interval}"


def _metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    """`nll_laplace`, `band_nll_laplace`, `pooled_nll_laplace`, `auroc_entropy_laplace` and their like."""
    prefixes = {"per_image": "", "band_per_image": "band_", "pooled": "pooled_"}
    return {
        f"{prefix}{metric}_{method}": float(estimate[0])
        for scope, prefix in prefixes.items()
        for method, its in facts["scores"][scope].items()
        for metric, estimate in its.items()
        if (metric in COLUMNS or metric.startswith("auroc")) and estimate[0] is not None and math.isfinite(estimate[0])
    }
