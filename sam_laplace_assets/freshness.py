"""What is out of date: the one answer for `run`, `plan`, and whatever refreshes by itself.

An asset says what it wants by the same function that Dagster calls, its store says what is there, and their difference
is what is stale. So nothing is stale that a run would leave alone, and nothing fresh that it would make again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from sam_laplace_assets.assets.graph import BY_NAME
from sam_laplace_assets.domain.plan import Course, Plan, Record, digest, digest_of_all, lacks, missing
from sam_laplace_assets.io_managers import IO_MANAGERS, LEFT_OUT, OVERRIDES, StoreIOManager, asset_name, left_out
from sam_laplace_assets.resources.sam import SamResource
from sam_laplace_assets.settings import Settings
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.store import NotMade

WAITS = "waits"


@dataclass(frozen=True)
class LastTime:
    """The newest materialisation of one partition of an asset, as Dagster remembers it.

    Attributes:
        number: of its event; 0 if there was none.
        made: when.
        told: its metadata.
    """

    number: int = 0
    made: datetime | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> Mapping[str, Any]:
        """Launchpad fields that it was made with, which hold until it is made with others."""
        return dict(self.told.get(OVERRIDES, {}))

    @property
    def is_trial(self) -> bool:
        """Whether it was made with `limit`."""
        return "limit" in self.overrides


@dataclass(frozen=True)
class Freshness:
    """How one partition of one asset stands.

    Attributes:
        asset: name of the asset.
        partition: its split, or empty.
        wanted: units that should be there.
        stale: units that are there, but were made from something else.
        missing: units that are not there.
        unit: what is counted.
        why: what a run would do, or what it waits for; empty if nothing.
        wants: digest of what should be there.
        last: its newest materialisation.
    """

    asset: str
    partition: str
    wanted: int = 0
    stale: int = 0
    missing: int = 0
    unit: str = "items"
    why: str = ""
    wants: str = ""
    last: LastTime = LastTime()

    @property
    def lacking(self) -> int:
        """Units that are missing or stale."""
        return self.stale + self.missing

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
        return asset_name(dg.AssetKey(self.asset), self.partition)


def look(
    asset: dg.AssetsDefinition,
    partition: str,
    settings: Settings,
    instance: dg.DagsterInstance,
    *,
    keep_overrides: bool = True,
) -> Freshness:
    """Compare what one partition of an asset should hold with what is there.

    Launchpad fields that it was made with last still hold, unless `keep_overrides` is false.
    """
    name, last = asset.key.to_user_string(), last_time(asset.key, partition, instance, keep_overrides=keep_overrides)
    try:
        plan = wanted_plan(asset, partition, settings, instance, last.overrides)
        store = _io_manager(asset).store(Project.of(settings), partition)
        records = store.records(plan.items)
        finished = store.finished(plan, _whole(plan, records))
    except (NotMade, dg.Failure, ValueError, OSError) as reason:
        why = f"{WAITS}: {getattr(reason, 'description', None) or reason}"
        return Freshness(name, partition, why=why, wants=digest(why), last=last)
    wanted, stale, lost, unit = _count(plan, records, last)
    lacking = bool(stale or lost)
    tolerated = lacking and left_out(plan, records) == last.told.get(LEFT_OUT)  # it would only fail again
    whole = (tolerated or not lacking) and finished
    why = "" if tolerated and whole else _why(stale, lost, unit, whole, last)
    return Freshness(name, partition, wanted, stale, lost, unit, why, _wants(plan), last)


def _whole(plan: Plan | Course, records: Mapping[str, Record]) -> dict[str, Record]:
    """The records of items that lack nothing: an item that failed may have left an older one behind."""
    return {item.key: records[item.key] for item in plan.items if not lacks(records.get(item.key), item)}


def _count(plan: Plan | Course, records: Mapping[str, Record], last: LastTime) -> tuple[int, int, int, str]:
    """How much there should be, how much of it is stale, how much is missing, and what is counted."""
    unit, weight = ("runs", _one) if isinstance(plan, Course) else (plan.unit, plan.weight)
    wanted = sum(weight(item, frozenset(item.parts)) for item in plan.items)
    lacking = stale = 0
    for item, parts in missing(plan, records):
        there = records[item.key].parts if item.key in records else {}
        lacking += weight(item, parts)
        if other := frozenset(part for part in parts if part in there):
            stale += weight(item, other)
    if len(plan.items) == 1 and lacking and last.number:  # a run or a decision that was made from something else
        stale = lacking
    failed = len(getattr(plan, "failed", ()))
    return wanted + failed, stale, lacking - stale + failed, unit


def _one(item: Any, parts: frozenset[str]) -> int:
    return 1


def _why(stale: int, lost: int, unit: str, whole: bool, last: LastTime) -> str:
    if stale or lost:
        return _lacks(stale, lost, unit)
    if not whole:
        return "its items have changed"
    return "" if last.number else "Dagster has no record of it"


def _lacks(stale: int, lost: int, unit: str) -> str:
    """`3 prompt sets missing, 1 stale`."""
    if stale and lost:
        return f"{lost:,} {unit} missing, {stale:,} stale"
    return f"{lost:,} {unit} missing" if lost else f"{stale:,} {unit} stale"


def _wants(plan: Plan | Course) -> str:
    items = digest_of_all([item.key, dict(item.parts)] for item in plan.items)
    return digest([items, sorted(getattr(plan, "failed", ())), plan.complete])


def last_time(
    key: dg.AssetKey, partition: str, instance: dg.DagsterInstance, *, keep_overrides: bool = True
) -> LastTime:
    """The newest materialisation of one partition; without its launchpad fields if they are to be forgotten."""
    wanted = dg.AssetRecordsFilter(key, asset_partitions=[partition] if partition else None)
    for record in instance.fetch_materializations(wanted, limit=1).records:
        told = record.asset_materialization.metadata if record.asset_materialization is not None else {}
        made = datetime.fromtimestamp(record.timestamp, UTC)
        kept = {name: one.value for name, one in told.items() if keep_overrides or name != OVERRIDES}
        return LastTime(record.storage_id, made, kept)
    return LastTime()


def wanted_plan(
    asset: dg.AssetsDefinition,
    partition: str,
    settings: Settings,
    instance: dg.DagsterInstance,
    overrides: Mapping[str, Any],
) -> Any:
    """The plan that the asset's own function gives for a partition and some launchpad fields, without a run.

    Raises:
        NotMade, dagster.Failure, ValueError, OSError: what it reads is not there, or it refuses.
    """
    context = dg.build_asset_context(partition_key=partition or None, instance=instance)
    function = asset.op.compute_fn.decorated_fn  # type: ignore[union-attr]
    given = dict(_inputs(asset, partition, settings))
    if "context" in function.__annotations__:
        given["context"] = context
    if "config" in function.__annotations__:
        given["config"] = function.__annotations__["config"](**known_fields(asset, overrides))
    if "sam" in function.__annotations__:
        given["sam"] = SamResource()
    return function(**given)


def known_fields(asset: dg.AssetsDefinition, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Launchpad fields that the asset still has; another version of this package may have had others."""
    config = asset.op.compute_fn.decorated_fn.__annotations__.get("config")  # type: ignore[union-attr]
    return {name: value for name, value in overrides.items() if config is not None and name in config.model_fields}


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
