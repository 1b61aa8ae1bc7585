"""posterior_sweep: configurations of the posterior of one head, compared with each other and with the head alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from sam_laplace_assets.assets.pictures import draw_by_precision
from sam_laplace_assets.assets.posterior import clip_of, opened
from sam_laplace_assets.domain.plan import Item, Plan, Report, digest
from sam_laplace_assets.overrides import FORCE, GO_ON, Overrides
from sam_laplace_assets.partitions import require_training_split, training_splits
from sam_laplace_assets.settings import LaplaceSettings, Settings, load_settings
from sam_laplace_assets.storage.head import HeadRun
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.reports import PART, Findings, picture, require_facts
from sam_laplace_assets.storage.sweep import SCHEMA, TABLE

if TYPE_CHECKING:
    from sam_laplace_assets.domain.sweep import Configuration, Swept

SWEEP_VERSION = "1"
SHOWN = 10
PREVIEW = ("approx", "likelihood_temperature", "prior", "prior_precision", "val_nll", "ece", "mean_information",
           "logit_scale", "scaled_val_nll", "beats_head")  # fmt: skip
PICTURE = "nll_by_precision"


class SweepConfig(Overrides):
    """Launchpad fields of posterior_sweep."""

    force: bool = FORCE
    sweep: list[dict[str, Any]] | None = Field(
        None,
        description="configurations, each with approx, likelihood_temperature and prior_precision (a number, or "
        "marginal_likelihood)",
    )


@dg.asset(
    partitions_def=training_splits,
    io_manager_key="sweep_io",
    retry_policy=GO_ON,
    group_name="uncertainty",
    pool="gpu",
    code_version=SWEEP_VERSION,
    kinds={"pytorch"},
    ins={"hdf5_pack": dg.AssetIn(partition_mapping=dg.IdentityPartitionMapping())},
)
def posterior_sweep(
    context: dg.AssetExecutionContext, config: SweepConfig, head_checkpoint: HeadRun, hdf5_pack: Pack,
    validation_pack: Pack,
) -> Plan:  # fmt: skip
    """Validation NLL of many configurations of one head's posterior, in one pass; made only when asked for."""
    settings = load_settings()
    split = require_training_split(context.partition_key, settings.data)
    return plan_sweep(split, head_checkpoint, hdf5_pack, validation_pack, settings, config)


def plan_sweep(
    split: str, head: HeadRun, pack: Pack, validation: Pack, settings: Settings, config: SweepConfig
) -> Plan:
    """One table of the configurations, made anew when the head, a pack or a configuration has changed."""
    laplace = config.over(settings.laplace)
    made_from = {"head_sha256": head.best_sha256, "pack": pack.data_version, "validation_pack": validation.data_version,
                 "laplace": laplace.model_dump(exclude={"logit_scaling"}), "logit_clip": clip_of(head),
                 "version": SWEEP_VERSION}  # fmt: skip
    item = Item(split, {PART: digest(made_from)})

    def make(item: Item, parts: frozenset[str]) -> Findings:
        return findings(compare(head, pack, validation, settings, laplace))

    return Plan([item], make=make, unit="sweeps", force=config.force,
                report=lambda records: report(split, laplace, settings))  # fmt: skip


def compare(head: HeadRun, pack: Pack, validation: Pack, settings: Settings, laplace: LaplaceSettings) -> "list[Swept]":
    """All configurations, the best first."""
    from sam_laplace_assets.domain.sweep import asked_for, sweep

    network, (training, judged), passes = opened(head, (pack, validation), settings)
    own = asked_for(laplace.approx, laplace.likelihood_temperature, laplace.prior, laplace.prior_precision_grid)
    return sweep(network, training, judged, configurations(laplace), settings=own,
                 target_layer=laplace.target_layer, **passes)  # fmt: skip


def configurations(laplace: LaplaceSettings) -> "list[Configuration]":
    """What is compared: as the settings say, or all combinations."""
    from sam_laplace_assets.domain.sweep import Configuration, default_sweep

    named = [Configuration(one.approx, one.likelihood_temperature, one.prior_precision) for one in laplace.sweep]
    return named or default_sweep(laplace.prior_precision_grid)


def findings(swept: "Sequence[Swept]") -> Findings:
    """The table, the picture, and in words which configuration is best."""
    import pandas as pd

    table = [asdict(one) for one in swept]
    (own,) = [row for row in table if row["of_settings"]]
    facts = {"result": verdict(table[0], own), "when scaled": verdict_when_scaled(table), "best": table[0],
             "settings": own, "configurations": len(table),
             "better than the head alone": sum(row["beats_head"] for row in table), "shown": table[:SHOWN]}  # fmt: skip
    drawn = draw_by_precision(_curves(table), ylabel="validation NLL, nats a pixel",
                              level=("head (MAP)", own["map_nll"]))  # fmt: skip
    return Findings({TABLE: pd.DataFrame(table, columns=SCHEMA.names)}, {PICTURE: drawn}, facts)


def verdict(best: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Which configuration is best, and by how much it beats the head alone and the settings in force."""
    against = [f"{_distance(best['val_nll'], best['map_nll'])} the head alone ({best['map_nll']:.6f})"]
    against += ([f"{_distance(best['val_nll'], own['val_nll'])} what the settings give ({named(own)})"]
                if not best["of_settings"] else ["it is what the settings give"])  # fmt: skip
    return f"Best: {named(best)}, with validation NLL {best['val_nll']:.6f} nats a pixel: {', '.join(against)}."


def verdict_when_scaled(table: Sequence[Mapping[str, Any]]) -> str:
    """Which configuration is best with its logits scaled: often another one, since a scale undoes what T widened."""
    scaled = [row for row in table if row["scaled_val_nll"] is not None]
    if not scaled:
        return "No factor on the logits of any configuration is best."
    best = min(scaled, key=lambda row: row["scaled_val_nll"])
    return f"Best: {named(best)}, logits times {best['logit_scale']:.4g}: {best['scaled_val_nll']:.6f} nats a pixel."


def named(row: Mapping[str, Any]) -> str:
    """A configuration in words."""
    setting = row["likelihood_temperature"]
    temperature = f"{setting} ({row['temperature']:.4g})" if setting == "image_cluster" else setting
    by = "" if row["prior"] == "grid" else " by marginal likelihood"
    return f"{row['approx']}, T {temperature}, prior precision {row['prior_precision']:.4g}{by}"


def _distance(ours: float, theirs: float) -> str:
    return f"{abs(ours - theirs):.2g} {'below' if ours < theirs else 'above'}"


def _curves(table: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(precision, validation NLL), ascending, by approximation and temperature."""
    labels = [f"{row['approx']}, T {row['likelihood_temperature']}" for row in table]
    return {label: sorted((row["prior_precision"], row["val_nll"])
                          for row, its in zip(table, labels, strict=True) if its == label)
            for label in sorted(set(labels))}  # fmt: skip


def report(split: str, laplace: LaplaceSettings, settings: Settings) -> Report:
    """The sentence, the best configurations, and NLL against precision."""
    folder = Project.of(settings).report("posterior_sweep", split)
    found = require_facts(folder, name=f"posterior_sweep[{split}]")
    best, own = found["best"], found["settings"]
    facts = {"result": found["result"], "when scaled": found["when scaled"], "folder": dg.MetadataValue.path(folder),
             "configurations": found["configurations"],
             "better than the head alone": found["better than the head alone"]}  # fmt: skip
    metrics = {"best_val_nll": best["val_nll"], "settings_val_nll": own["val_nll"], "val_nll_map": own["map_nll"],
               "best_prior_precision": best["prior_precision"], "best_temperature": best["temperature"],
               "configurations": found["configurations"]}  # fmt: skip
    table = [{name.replace("_", " "): row[name] for name in PREVIEW} for row in found["shown"]]
    return Report(facts=facts, params=laplace.model_dump(), metrics=metrics, tables={"best configurations": table},
                  pictures={"validation NLL": picture(folder, PICTURE)})  # fmt: skip
