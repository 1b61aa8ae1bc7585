"""laplace_posterior: a Laplace posterior on the last layer of one head."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from sam_laplace_assets.assets.head import run_name
from sam_laplace_assets.assets.pictures import draw_by_precision, draw_prior_search
from sam_laplace_assets.domain.plan import Item, Plan, Registered, Report, digest
from sam_laplace_assets.overrides import GO_ON, Overrides
from sam_laplace_assets.partitions import require_training_split, training_splits
from sam_laplace_assets.resources.tracking import model_names
from sam_laplace_assets.settings import LaplaceSettings, Settings, load_settings
from sam_laplace_assets.storage.head import HeadRun
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.posterior import CONFIG, META, PART, STATE, FittedPosterior, PosteriorRun
from sam_laplace_assets.storage.project import Project

if TYPE_CHECKING:
    from sam_laplace_assets.domain.curvature import Curvature
    from sam_laplace_assets.domain.pack import Rows
    from sam_laplace_assets.domain.prior import PriorSearch, Tuned

POSTERIOR_VERSION = "2"
LIBRARIES = ("torch", "laplace-torch", "numpy")


class PosteriorConfig(Overrides):
    """Launchpad fields of laplace_posterior."""

    label: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]*$", description="a word in the run's id")
    approx: str | None = Field(None, description="structure of the posterior: diagonal or full")
    prior_precision_grid: list[float] | None = Field(None, description="prior precisions to choose from")
    prior: str | None = Field(None, description="what chooses the prior precision: grid or marginal_likelihood")
    likelihood_temperature: Any = Field(None, description="of the likelihood: a positive number, or image_cluster")
    logit_scaling: bool | None = Field(None, description="apply the factor on logits that validation likes best")


@dg.asset(
    partitions_def=training_splits,
    io_manager_key="posterior_io",
    retry_policy=GO_ON,
    group_name="uncertainty",
    pool="gpu",
    code_version=POSTERIOR_VERSION,
    kinds={"pytorch"},
    ins={"hdf5_pack": dg.AssetIn(partition_mapping=dg.IdentityPartitionMapping())},
)
def laplace_posterior(
    context: dg.AssetExecutionContext, config: PosteriorConfig, head_checkpoint: HeadRun, hdf5_pack: Pack,
    validation_pack: Pack,
) -> Plan:  # fmt: skip
    """A Laplace posterior on the head's last layer, its prior precision chosen by validation or evidence."""
    settings = load_settings()
    split = require_training_split(context.partition_key, settings.data)
    return plan_posterior(split, head_checkpoint, hdf5_pack, validation_pack, settings, config)


def plan_posterior(
    split: str, head: HeadRun, pack: Pack, validation: Pack, settings: Settings, config: PosteriorConfig
) -> Plan:
    """One run, named after the head's bytes, the packs and the settings."""
    laplace = config.over(settings.laplace)
    made_from = {"head_sha256": head.best_sha256, "pack": pack.data_version, "validation_pack": validation.data_version,
                 "laplace": laplace.model_dump(exclude={"sweep"}), "logit_clip": clip_of(head),
                 "version": POSTERIOR_VERSION}  # fmt: skip
    item = Item(run_name(split, config.label, digest(made_from)), {PART: digest(made_from)})

    def make(item: Item, parts: frozenset[str]) -> FittedPosterior:
        return fit(split, head, pack, validation, settings, laplace)

    return Plan([item], make=make, finish=config.given(), unit="posteriors",
                report=lambda records: report(item, laplace, settings))  # fmt: skip


def fit(
    split: str, head: HeadRun, pack: Pack, validation: Pack, settings: Settings, laplace: LaplaceSettings
) -> FittedPosterior:
    """Curvature in one pass over the pack, prior precision and logit scale in one pass over validation."""
    from sam_laplace_assets.domain.curvature import fit_curvature, resolve_temperature
    from sam_laplace_assets.domain.posterior import build_laplace
    from sam_laplace_assets.domain.prior import tune_prior_precision
    from sam_laplace_assets.domain.probe import take_probe

    network, (rows, judged), passes = opened(head, (pack, validation), settings)
    curvature = fit_curvature(network, rows, target_layer=laplace.target_layer, approx=laplace.approx, **passes)
    temperature = resolve_temperature(curvature, laplace.likelihood_temperature)
    tuned = tune_prior_precision(network, curvature, judged, prior_precision_grid=laplace.prior_precision_grid,
                                 prior=laplace.prior, temperature=temperature, **passes)  # fmt: skip
    posterior = build_laplace(network, curvature, prior_precision=tuned.search.chosen, temperature=temperature)
    made_from = {
        "training_split": split,
        "head": {"run_id": head.run_id, "sha256": head.best_sha256, "overrides": dict(head.overrides)},
        "packs": {"train": pack.data_version, "validation": validation.data_version},
        "prompts": head.config.get("prompts"),
        "sam": head.config.get("sam"),
        "logit_clip": clip_of(head),
        "probe": asdict(take_probe(posterior, network)),
    }
    found = findings(curvature, tuned, posterior, laplace)
    config = laplace.model_dump(exclude={"sweep"})
    return FittedPosterior(posterior.state_dict(), head.weights(), config, made_from | found)


def opened(head: HeadRun, packs: Sequence[Pack], settings: Settings) -> tuple[Any, list["Rows"], dict[str, Any]]:
    """The head as a module, the rows of each pack, and what every pass over them is given."""
    from sam_laplace_assets.domain.head import restore_head
    from sam_laplace_assets.resources.checkpoints import resolve_device
    from sam_laplace_assets.storage.rows import read_rows

    training = settings.training
    rows: list[Rows] = [read_rows(pack, memory_budget=training.memory_budget) for pack in packs]
    passes = {"logit_clip": clip_of(head), "batch_size": training.batch_size,
              "device": resolve_device(settings.sam.device)}  # fmt: skip
    return restore_head(head.weights()), rows, passes


def findings(curvature: "Curvature", tuned: "Tuned", posterior: Any, laplace: LaplaceSettings) -> dict[str, Any]:
    """What posterior_meta.json says of the fit: likelihood, prior, temperature, counts, and what to beware of."""
    search, scale = tuned.search, logit_scale(tuned, applied=laplace.logit_scaling)
    return {
        "likelihood": "Bernoulli per pixel", "target_layer": laplace.target_layer, "approx": laplace.approx,
        "parameters": len(curvature.weights), "dead_parameters": curvature.n_dead,
        "prior_precision": search.chosen, "prior_search": asdict(search), "logit_scale": scale,
        "warnings": warnings_of(search) + scale_warnings(scale, laplace),
        "likelihood_temperature": {"setting": laplace.likelihood_temperature, "value": float(posterior.temperature)},
        "counts": {"images": curvature.n_images, "rows": curvature.n_rows, "pixels": curvature.n_pixels},
        "train_nll_per_pixel": curvature.nll / curvature.n_pixels,
        "log_marginal_likelihood": float(posterior.log_marginal_likelihood()),
        "versions": {name: version(name) for name in LIBRARIES},
    }  # fmt: skip


def clip_of(head: HeadRun) -> float:
    """The bound on logits that the head was trained with; today's settings may have another."""
    return float(head.config["training"]["logit_clip"])


def logit_scale(tuned: "Tuned", *, applied: bool) -> dict[str, Any]:
    """The factor on logits, what it does to validation NLL, and whether it is used; null where none is best."""
    if tuned.scale is None:
        return {"value": None, "nll_before": None, "nll_after": None, "applied": False}
    scale = tuned.scale
    return {"value": scale.value, "nll_before": scale.nll_before, "nll_after": scale.nll_after, "applied": applied}


def scale_warnings(scale: Mapping[str, Any], laplace: LaplaceSettings) -> list[str]:
    """What a reader should know where scaling was asked for and cannot be done."""
    if laplace.logit_scaling and not scale["applied"]:
        return ["The logits are not scaled: no factor on them is best on this validation pack."]
    return []


def warnings_of(search: "PriorSearch") -> list[str]:
    """What a reader should know of the choice of the prior precision."""
    if search.at_edge and search.method != "grid":
        return [f"The marginal likelihood still grows at prior precision {search.chosen:g}, where the search ends."]
    if search.flat:
        return ["The prior precision is not identified: validation NLL is the same over the whole grid, so the largest "
                "one was taken."]  # fmt: skip
    if search.at_edge:
        return [f"The chosen prior precision {search.chosen:g} is at the edge of the grid: extend it."]
    return []


def report(item: Item, laplace: LaplaceSettings, settings: Settings) -> Report:
    """The search as table and curve, the logit scale, and the posterior as a version of the registered model."""
    run = PosteriorRun.open(Project.of(settings).posteriors / f"run_{item.key}")
    search: Mapping[str, Any] = run.meta["prior_search"]
    table = [{"prior precision": precision, "validation NLL": nll}
             for precision, nll in zip(search["grid"], search["val_nll"], strict=True)]  # fmt: skip
    scale: Mapping[str, Any] = run.meta["logit_scale"]
    facts = {"warnings": " ".join(run.meta["warnings"])} if run.meta["warnings"] else {}
    facts |= {"run": item.key, "head": run.meta["head"]["run_id"], "prior precision": search["chosen"],
             "validation NLL": min(search["val_nll"]), "validation NLL of the head": search["map_nll"],
              "temperature": run.meta["likelihood_temperature"]["value"]}  # fmt: skip
    metrics = {"prior_precision": search["chosen"], "val_nll": min(search["val_nll"]), "val_nll_map": search["map_nll"],
               "log_marginal_likelihood": run.meta["log_marginal_likelihood"]}  # fmt: skip
    if search["method"] == "grid":
        metrics |= {f"val_nll_at_{row['prior precision']:g}".replace("+", ""): row["validation NLL"] for row in table}
    if scale["value"] is not None:
        facts |= {"logit scale": scale["value"], "validation NLL when scaled": scale["nll_after"],
                  "logits are scaled": "yes" if scale["applied"] else "no"}  # fmt: skip
        metrics |= {"logit_scale": scale["value"], "val_nll_scaled": scale["nll_after"]}
    return Report(
        warnings=run.meta["warnings"], facts=facts, params=laplace.model_dump(exclude={"sweep"}), metrics=metrics,
        tables={"prior grid": table},
        pictures={"prior search": _picture(search)},
        model=Registered(model_names(settings.mlflow)["posterior"], item.key),
        files={name: (run.folder / name).read_bytes() for name in (STATE, CONFIG, META)},
    )  # fmt: skip


def _picture(search: Mapping[str, Any]) -> bytes:
    """Validation NLL over the grid, or the marginal likelihood around the precision that it chose."""
    if search["method"] == "grid":
        return draw_prior_search(search["grid"], search["val_nll"], map_nll=search["map_nll"], chosen=search["chosen"])
    return draw_by_precision({"marginal likelihood": search["curve"]}, ylabel="log marginal likelihood, nats",
                             chosen=search["chosen"])  # fmt: skip
