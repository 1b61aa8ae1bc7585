"""The way through the graph: which assets run together for which partition, and in which order."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg

from sam_laplace_assets.assets.graph import BY_NAME
from sam_laplace_assets.domain.manifest import PARTITION_ROLES, check_split_key
from sam_laplace_assets.freshness import Freshness, known_fields, last_time, look
from sam_laplace_assets.jobs import OF_A_HEAD, OF_A_SPLIT, OF_THE_CHAMPION
from sam_laplace_assets.partitions import is_training_split
from sam_laplace_assets.settings import Settings
from sam_laplace_assets.storage.project import Project

SCAN = dg.AssetKey("all_samples")
EXPERIMENTS = {"active_prompting": "prompt_actively", "posterior_sweep": "sweep_posteriors"}
"""Assets that are made only when they are asked for by name, and the jobs that make them."""


@dataclass(frozen=True)
class Stage:
    """Assets that run together for one partition, each after those that it depends on."""

    job: str
    partition: str
    assets: tuple[str, ...]

    def needs(self, earlier: "Stage") -> bool:
        """Whether this stage reads, directly or through others, what an earlier one makes."""
        if earlier.job == "scan":
            return self.partition in ("", *PARTITION_ROLES)
        if self.job == "prepare_split":
            return False
        if earlier.job == "prepare_split":
            return earlier.partition in ("val", self.partition)
        if earlier.job == "train_and_fit":
            return self.job == EXPERIMENTS["posterior_sweep"] and self.partition == earlier.partition
        if earlier.job == "choose_champion":
            return self.job in ("evaluate", EXPERIMENTS["active_prompting"])
        return earlier.job == "name_validation_pack"


def stages(
    splits: Sequence[str],
    *,
    scanned: bool = False,
    fitted: bool = False,
    used_on: Collection[str] = ("test",),
    asked: Collection[str] = (),
) -> Iterator[Stage]:
    """The way through the graph for some splits; named ones leave the base splits and what is judged on them alone.

    Args:
        splits: which.
        scanned: whether all_samples was made before.
        fitted: whether there are posteriors, which another validation pack would judge anew.
        used_on: roles of the splits on which the champion is put to use; elsewhere that must be asked for.
        asked: assets that somebody asks for by name, as experiments must be.
    """
    if not scanned or any(split in PARTITION_ROLES for split in splits):
        yield Stage("scan", "", ("all_samples",))
    for split in splits:
        yield Stage("prepare_split", split, OF_A_SPLIT)
    if "val" in splits:
        yield Stage("name_validation_pack", "", ("validation_pack",))
    trained = [split for split in splits if is_training_split(split)]
    for split in trained:
        yield Stage("train_and_fit", split, OF_A_HEAD)
    if trained or (fitted and "val" in splits):
        yield Stage("choose_champion", "", ("champion",))
    if trained or fitted:
        yield from _uses(splits, trained, used_on, asked)


def _uses(
    splits: Sequence[str], trained: Sequence[str], used_on: Collection[str], asked: Collection[str]
) -> Iterator[Stage]:
    """What heads, posteriors and the champion are for."""
    for split in splits:
        wanted = OF_THE_CHAMPION if check_split_key(split) in used_on else asked
        if assets := tuple(name for name in OF_THE_CHAMPION if name in wanted):
            yield Stage("evaluate", split, assets)
    for name, job in EXPERIMENTS.items():
        if name in asked:
            yield from (Stage(job, split, (name,)) for split in (trained if name == "posterior_sweep" else splits))


def stages_now(
    splits: Sequence[str], settings: Settings, instance: dg.DagsterInstance, *, asked: Collection[str] = ()
) -> Iterator[Stage]:
    """`stages` as things stand: whether there was a scan, and whether there are posteriors."""
    scanned = instance.get_latest_materialization_event(SCAN) is not None
    return stages(splits, scanned=scanned, fitted=bool(Project.of(settings).posterior_pointers()),
                  used_on=settings.automation.use_champion_on, asked=asked)  # fmt: skip


def stock(splits: Sequence[str], settings: Settings, instance: dg.DagsterInstance) -> Iterator[Freshness]:
    """How every asset of some splits stands, partition by partition, in the order of the graph."""
    stale: dict[Stage, Freshness] = {}
    for stage in stages_now(splits, settings, instance):
        first = next((found for earlier, found in stale.items() if stage.needs(earlier)), None)
        for name in stage.assets:
            found = look(BY_NAME[name], stage.partition, settings, instance)
            if found.current and first is not None:
                found = replace(found, why=f"follows {first.name}")
            first = first or (None if found.current else found)
            yield found
        if first is not None:
            stale[stage] = first


def stale_from(
    stage: Stage,
    selected: Sequence[str],
    settings: Settings,
    instance: dg.DagsterInstance,
    *,
    keep_overrides: bool = True,
) -> list[Freshness]:
    """The first stale asset of a stage and those after it: what follows is only known once that is made."""
    for at, name in enumerate(selected):
        first = look(BY_NAME[name], stage.partition, settings, instance, keep_overrides=keep_overrides)
        if not first.current:
            after = {later: last_time(dg.AssetKey(later), stage.partition, instance, keep_overrides=keep_overrides)
                     for later in selected[at + 1 :]}  # fmt: skip
            follows = f"follows {name}"
            return [first, *(Freshness(it, stage.partition, why=follows, last=last) for it, last in after.items())]
    return []


def run_config(stale: Sequence[Freshness]) -> dict[str, Any]:
    """What the launchpad would hold: the fields that were filled in when each was made last."""
    given = {one.asset: known_fields(BY_NAME[one.asset], one.last.overrides) for one in stale}
    return {"ops": {name: {"config": fields} for name, fields in given.items() if fields}}
