"""What an evaluation finds: scores of all methods, their tables, the verdict, and which images went worst."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sam_laplace_assets.assets.champion import Candidate
from sam_laplace_assets.assets.evaluation_pictures import WorstCase, draw_reliability, draw_risk_coverage, draw_worst
from sam_laplace_assets.assets.pictures import contact_sheet
from sam_laplace_assets.domain.bootstrap import too_narrow
from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.settings import Settings
from sam_laplace_assets.storage.evaluation import RowNames, frame_of, rows_table
from sam_laplace_assets.storage.manifest import Sample
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.reports import Findings

if TYPE_CHECKING:
    from sam_laplace_assets.domain.method_scores import MethodScores
    from sam_laplace_assets.domain.pack import Rows
    from sam_laplace_assets.domain.predictor import Predictor
    from sam_laplace_assets.domain.scoreboard import Draws

EVALUATION_VERSION = "1"
CONFIDENCE, SEED = 0.95, 0
WORST = 10


@dataclass(frozen=True)
class Judged:
    """What one evaluation is of.

    Attributes:
        candidate: the champion's posterior with its head.
        pack: whose rows are scored.
        validation: on which SAM's logits are scaled.
        samples: safe_id -> sample, as far as the manifest has them.
        groups: of each of the pack's samples, or None where images are groups of their own.
        resamples, band: as the launchpad says.
    """

    candidate: Candidate
    pack: Pack
    validation: Pack
    samples: Mapping[str, Sample]
    groups: tuple[str, ...] | None
    resamples: int
    band: int

    @property
    def scale(self) -> float | None:
        """The factor on the posterior's logits that its fit found; None where there is none."""
        value = _recorded_scale(self.candidate).get("value")
        return None if value is None else float(value)

    @property
    def is_scaled(self) -> bool:
        """Whether the posterior is used with that factor."""
        return bool(_recorded_scale(self.candidate).get("applied"))

    def provenance(self) -> str:
        """Digest of all that decides what comes out."""
        meta = self.candidate.posterior.meta
        return digest({
            "champion": self.candidate.posterior.run_id, "posterior": meta["sha256"], "head": meta["head"]["sha256"],
            "logit_scale": meta.get("logit_scale"), "pack": self.pack.data_version, "complete": self.pack.complete,
            "validation_pack": self.validation.data_version, "groups": self.groups, "resamples": self.resamples,
            "confidence": CONFIDENCE, "seed": SEED, "band": self.band, "version": EVALUATION_VERSION,
        })  # fmt: skip

    def draws(self) -> "Draws":
        """How intervals are drawn."""
        from sam_laplace_assets.domain.scoreboard import Draws

        groups = None if self.groups is None else np.array(self.groups)[self.pack.images]
        return Draws(self.pack.images, groups, self.resamples, CONFIDENCE, SEED)


def evaluate(judged: Judged, settings: Settings) -> Findings:
    """Score all methods in one pass over the pack, after one over the validation pack for SAM's scale."""
    from sam_laplace_assets.domain.comparison import LAPLACE, LAPLACE_SCALED, compare_methods
    from sam_laplace_assets.storage.rows import read_rows

    training = settings.training
    predictor = _predictor(judged.candidate, settings)
    rows, validation = (
        read_rows(one, memory_budget=training.memory_budget) for one in (judged.pack, judged.validation)
    )
    scale = fit_scale(validation, logit_clip=predictor.logit_clip, batch_size=training.batch_size)
    scores = compare_methods(predictor, rows, sam_scale=scale["value"], laplace_scale=judged.scale, band=judged.band,
                             batch_size=training.batch_size)  # fmt: skip
    names, ours = RowNames.of(judged.pack, judged.samples), LAPLACE_SCALED if judged.is_scaled else LAPLACE
    found, draws = tables_of(scores, judged.draws(), names), judged.draws()
    cases = list(worst_cases(judged, scores, rows, predictor, names, ours=ours))
    frames = {name: frame_of(name, table) for name, table in found.items()}
    facts = facts_of(judged, scores, draws, found, ours=ours, sam_scale=scale)
    shown = [{"sample_id": one.sample_id, "promptset_id": one.promptset_id, "iou": one.iou, "drawn_on": one.drawn_on}
             for one in cases]  # fmt: skip
    return Findings({"rows": rows_table(scores, names), **frames}, pictures_of(found, cases), {**facts, "worst": shown},
                    judged.pack.complete)  # fmt: skip


def _predictor(candidate: Candidate, settings: Settings) -> "Predictor":
    """Head and posterior, without a logit scale: scaled and not scaled are compared."""
    from sam_laplace_assets.domain.predictor import Predictor
    from sam_laplace_assets.resources.checkpoints import resolve_device

    head, laplace = candidate.restore()
    clip = candidate.posterior.meta["logit_clip"]
    return Predictor(head, laplace, logit_clip=clip, device=resolve_device(settings.sam.device))


def _recorded_scale(candidate: Candidate) -> Mapping[str, Any]:
    return candidate.posterior.meta.get("logit_scale") or {}


def fit_scale(validation: "Rows", *, logit_clip: float, batch_size: int) -> dict[str, Any]:
    """SAM's scale with the NLL before and after; 1 and why, where there is no best one."""
    from sam_laplace_assets.domain.calibration import NoScale
    from sam_laplace_assets.domain.comparison import fit_sam_scale

    try:
        return {**asdict(fit_sam_scale(validation, logit_clip=logit_clip, batch_size=batch_size)), "failed": None}
    except NoScale as error:
        return {"value": 1.0, "nll_before": None, "nll_after": None, "failed": str(error)}


def tables_of(scores: "Mapping[str, MethodScores]", draws: "Draws", names: RowNames) -> dict[str, list[dict[str, Any]]]:
    """All tables but the one of rows."""
    from sam_laplace_assets.domain import scoreboard

    return {
        "metrics": scoreboard.metric_rows(scores, draws),
        "by_class": scoreboard.label_rows(scores, draws, names.classes, name="class"),
        "by_k_pairs": scoreboard.prompt_size_rows(scores, draws, names.n_pos, names.n_neg),
        "differences": scoreboard.difference_rows(scores, draws),
        "reliability": scoreboard.reliability_rows(scores),
        "risk_coverage": scoreboard.risk_coverage_rows(scores),
    }


def facts_of(
    judged: Judged, scores: "Mapping[str, MethodScores]", draws: "Draws", found: Mapping[str, Sequence[Any]], *,
    ours: str, sam_scale: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The verdict first, then what a reader must not miss, what was compared, and all figures."""
    from sam_laplace_assets.domain.scoreboard import verdict

    said, judgement = verdict(scores, draws, ours=ours)
    pack, posterior = judged.pack, judged.candidate.posterior
    warnings = [said] if judgement == "worse" else []
    return {
        "verdict": said, "warnings": [*warnings, *warnings_of(judged, draws, sam_scale)], "ours": ours,
        "ours_is": judgement, "champion": posterior.run_id, "head": posterior.meta["head"]["run_id"],
        "training_split": posterior.meta["training_split"], "split": pack.split, "complete": pack.complete,
        "images": len(pack.safe_ids), "rows": len(pack), "methods": list(scores),
        "left_out": left_out(found["metrics"]),
        "sam_scale": {**sam_scale, "fitted_on": judged.validation.split}, "laplace_scale": judged.scale,
        "logit_clip": posterior.meta["logit_clip"], "band": judged.band, "resamples": judged.resamples,
        "confidence": CONFIDENCE, "seed": SEED, "scores": nested(found["metrics"]),
    }  # fmt: skip


def warnings_of(judged: Judged, draws: "Draws", sam_scale: Mapping[str, Any]) -> Iterator[str]:
    """What makes these figures look better, or surer, than they are."""
    packs, version = judged.candidate.posterior.meta["packs"], judged.pack.data_version
    if not judged.pack.complete:
        yield "A trial: the pack does not hold all samples of its split."
    if version == judged.validation.data_version:
        yield ("Fitted on itself: this pack stopped the head's training, chose the prior precision and set the factor "
               "on SAM's logits. Judge by a split that did none of that.")  # fmt: skip
    if version == packs["train"]:
        yield "The head was trained on this very pack. Judge by another split."
    if sam_scale["failed"]:
        yield f"SAM's logits are not scaled: {sam_scale['failed']}"
    yield from too_narrow(int(draws.units.max()) + 1, "images" if judged.groups is None else "groups")


def left_out(metrics: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """`method scope metric` -> images that have no value there, where there are such."""
    return {f"{row['method']} {row['scope']} {row['metric']}": row["images_left_out"]
            for row in metrics if row["images_left_out"]}  # fmt: skip


def nested(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """scope -> method -> metric -> [value, low, high]."""
    found: dict[str, Any] = {}
    for row in metrics:
        its = found.setdefault(row["scope"], {}).setdefault(row["method"], {})
        its[row["metric"]] = [row["value"], row["low"], row["high"]]
    return found


def worst_cases(
    judged: Judged, scores: "Mapping[str, MethodScores]", rows: "Rows", predictor: "Predictor", names: RowNames, *,
    ours: str,
) -> Iterator[WorstCase]:  # fmt: skip
    """The images whose mask is worst, each with its worst prompt set, worst first."""
    iou = scores[ours].columns()["iou"].values
    for row in worst_rows(iou, judged.pack.images, n=WORST):
        maps = _maps(predictor, rows, row, scale=(judged.scale or 1.0) if judged.is_scaled else 1.0)
        key = names.safe_ids[names.images[row]]
        yield WorstCase(names.sample_ids[names.images[row]], int(names.promptset_id[row]), int(names.n_pos[row]),
                        int(names.n_neg[row]), float(iou[row]), _image(judged.samples.get(key)), maps)  # fmt: skip


def worst_rows(iou: np.ndarray, images: np.ndarray, *, n: int) -> list[int]:
    """The n rows of the lowest score, one an image; of equal ones the first."""
    order = np.argsort(iou, kind="stable")
    _, first = np.unique(images[order], return_index=True)
    return [int(row) for row in order[np.sort(first)][:n]]


def _maps(predictor: "Predictor", rows: "Rows", row: int, *, scale: float) -> dict[str, np.ndarray]:
    """What one row has and what is predicted there, (256, 256) each."""
    from sam_laplace_assets.domain.quantities import quantities

    inputs, masks = rows.read(np.array([row]))
    mean, variance = predictor.logits(inputs.to(predictor.device))
    found = quantities(mean * scale, variance * scale**2)
    layers = dict(zip(("sam_logits", "pos_map", "neg_map"), inputs[0].float(), strict=True))
    layers |= {"mask": masks[0], "predicted": mean[0] > 0, "probability": found.probability[0],
               "entropy": found.predictive_entropy[0], "mutual_information": found.mutual_information[0]}  # fmt: skip
    return {name: layer.cpu().numpy() for name, layer in layers.items()}


def _image(sample: Sample | None) -> np.ndarray | None:
    """The sample's image, or None where it cannot be read."""
    try:
        return None if sample is None else sample.image()
    except (ValueError, OSError):
        return None


def pictures_of(found: Mapping[str, Sequence[Any]], cases: Sequence[WorstCase]) -> dict[str, bytes]:
    """Reliability diagrams, risk-coverage curves, and the worst images on one sheet."""
    return {"reliability": draw_reliability(found["reliability"]),
            "risk_coverage": draw_risk_coverage(found["risk_coverage"]),
            "worst_images": contact_sheet([draw_worst(case) for case in cases])}  # fmt: skip
