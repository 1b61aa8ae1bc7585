"""What is out of date: the one answer for `run`, `plan`, and whatever refreshes by itself.

An asset says what it wants by the same function that Dagster calls, its store says what is there, and their difference
is what is stale. So nothing is stale that a run would leave alone, and nothing fresh that it would make again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from sam_laplace_assets.assets.graph import BY_NAME
from sam_laplace_assets.domain.plan import Course, Plan, Record, missing
from sam_laplace_assets.io_managers import IO_MANAGERS, LEFT_OUT, StoreIOManager, left_out
from sam_laplace_assets.resources.sam import SamResource
from sam_laplace_assets.settings import Settings
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.store import NotMade

WAITS = "waits"


@dataclass(frozen=True)
class Freshness:
    """How one partition of one asset stands.

    Attributes:
        asset: name of the asset.
        partition: its split, or empty.
        wanted: units that should be there.
        lacking: units that are missing or stale.
        unit: what is counted.
        why: what a run would do, or what it waits for; empty if nothing.
    """

    asset: str
    partition: str
    wanted: int = 0
    lacking: int = 0
    unit: str = "items"
    why: str = ""

    @property
    def current(self) -> bool:
        """Whether a run would change nothing."""
        return not self.why

    @property
    def waits(self) -> bool:
        """Whether what it reads is not there, or refuses."""
        return self.why.startswith(WAITS)

    @property
    def name(self) -> str:
        """`sam_cache[train]`, or `champion`."""
        return f"{self.asset}[{self.partition}]" if self.partition else self.asset


def look(asset: dg.AssetsDefinition, partition: str, settings: Settings, instance: dg.DagsterInstance) -> Freshness:
    """Compare what one partition of an asset should hold with what is there."""
    name, told = asset.key.to_user_string(), _last_told(asset.key, partition, instance)
    try:
        plan = wanted_plan(asset, partition, settings, instance)
    except (NotMade, dg.Failure, ValueError, OSError) as reason:
        return Freshness(name, partition, why=f"{WAITS}: {getattr(reason, 'description', None) or reason}")
    store = _io_manager(asset).store(Project.of(settings), partition)
    records = store.records(plan.items)
    wanted, lacking, unit = _count(plan, records)
    tolerated = bool(lacking and told and left_out(plan, records) == told.get(LEFT_OUT))  # it would only fail again
    whole = (tolerated or not lacking) and store.finished(plan, records)
    return Freshness(
        name, partition, wanted, lacking, unit, "" if tolerated and whole else _why(lacking, unit, whole, told)
    )


def _count(plan: Plan | Course, records: Mapping[str, Record]) -> tuple[int, int, str]:
    """How much there should be, how much of it is lacking, and what is counted."""
    todo = missing(plan, records)
    if isinstance(plan, Course):
        return len(plan.items), len(todo), "runs"
    wanted = sum(plan.weight(item, frozenset(item.parts)) for item in plan.items)
    return wanted + len(plan.failed), sum(plan.weight(*task) for task in todo) + len(plan.failed), plan.unit


def _why(lacking: int, unit: str, whole: bool, told: Mapping[str, Any] | None) -> str:
    if lacking:
        return f"{lacking} {unit} are missing or stale"
    if not whole:
        return "its items have changed"
    return "" if told is not None else "Dagster has no record of it"


def _last_told(key: dg.AssetKey, partition: str, instance: dg.DagsterInstance) -> Mapping[str, Any] | None:
    """Metadata of the newest materialisation; None if there was none."""
    wanted = dg.AssetRecordsFilter(key, asset_partitions=[partition] if partition else None)
    for record in instance.fetch_materializations(wanted, limit=1).records:
        if record.asset_materialization is not None:
            return {name: one.value for name, one in record.asset_materialization.metadata.items()}
    return None


def wanted_plan(asset: dg.AssetsDefinition, partition: str, settings: Settings, instance: dg.DagsterInstance) -> Any:
    """The plan that the asset's own function gives for a partition, without a run.

    Raises:
        NotMade, dagster.Failure, ValueError, OSError: what it reads is not there, or it refuses.
    """
    context = dg.build_asset_context(partition_key=partition or None, instance=instance)
    function = asset.op.compute_fn.decorated_fn  # type: ignore[union-attr]
    given = dict(_inputs(asset, partition, settings))
    if "context" in function.__annotations__:
        given["context"] = context
    if "config" in function.__annotations__:
        given["config"] = function.__annotations__["config"]()
    if "sam" in function.__annotations__:
        given["sam"] = SamResource()
    return function(**given)


def _inputs(asset: dg.AssetsDefinition, partition: str, settings: Settings) -> Iterator[tuple[str, Any]]:
    annotated = asset.op.compute_fn.decorated_fn.__annotations__  # type: ignore[union-attr]
    for name, key in asset.keys_by_input_name.items():
        if name in annotated:
            upstream = BY_NAME[key.to_user_string()]
            read = _upstream_partition(asset, upstream, partition)
            yield name, _io_manager(upstream).view(settings, Project.of(settings), read)


def _upstream_partition(asset: dg.AssetsDefinition, upstream: dg.AssetsDefinition, partition: str) -> str:
    mapping = asset.get_partition_mapping(upstream.key)
    if isinstance(mapping, dg.SpecificPartitionsPartitionMapping):
        return next(iter(mapping.partition_keys))
    return partition if upstream.partitions_def is not None else ""


def _io_manager(asset: dg.AssetsDefinition) -> StoreIOManager:
    return IO_MANAGERS[asset.get_io_manager_key_for_asset_key(asset.key)]
