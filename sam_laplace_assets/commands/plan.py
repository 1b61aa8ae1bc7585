"""`sam-laplace plan`: what would be made, how large it gets, and how long it takes at the rate seen so far."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sam_laplace_assets.domain.manifest import FRACTIONS, PARTITION_ROLES, check_split_key
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage import images
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets.storage.project import Project, roots_of
from sam_laplace_assets.storage.store import NotMade

if TYPE_CHECKING:
    import dagster as dg

ARRAY_BYTES = 256 * 256 * 2
SET_BYTES = 3 * ARRAY_BYTES + 4096  # and meta.json, rounded up to a block
BYTES = {"sam_cache": SET_BYTES, "hdf5_pack": 3 * ARRAY_BYTES, "prompt_sets": 1024}
RESERVE = 1.05


@dataclass(frozen=True)
class Need:
    """What one partition of one asset lacks: prompt sets, bytes, and seconds where a rate is known."""

    asset: str
    split: str
    lacking: int
    wanted: int
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """All that is lacking, and what the disk has left."""

    needs: Sequence[Need]
    free: int
    root: Path

    @property
    def bytes(self) -> int:
        """Bytes that would be written."""
        return sum(need.bytes for need in self.needs)

    def table(self) -> str:
        """The estimate for a reader."""
        head = f"{'asset':<14}{'split':<20}{'prompt sets':>14}{'to make':>10}{'GB':>10}{'hours':>9}"
        unknown = any(need.lacking and need.seconds is None for need in self.needs)
        hours = sum(need.seconds or 0 for need in self.needs) / 3600
        notes = ["hours are unknown (?) until a first run has shown its rate; try one with `limit`"] if unknown else []
        return "\n".join([head, *map(_row, self.needs), "",
                          f"to write: {self.bytes / 1e9:.2f} GB, {hours:.2f} hours; "
                          f"free below {self.root}: {self.free / 1e9:.2f} GB", *notes])  # fmt: skip


def estimate(instance: "dg.DagsterInstance", splits: Sequence[str]) -> Estimate:
    """What is lacking of prompt sets, cache and pack, split by split."""
    from sam_laplace_assets.partitions import known_splits

    settings = load_settings()
    needs = [need for split in splits or known_splits(settings.data) for need in _needs(split, settings, instance)]
    root = next(path for path in (settings.data.project_root, *settings.data.project_root.parents) if path.exists())
    return Estimate(needs, shutil.disk_usage(root).free, settings.data.project_root)


def require_space(estimated: Estimate) -> None:
    """Refuse what does not fit on the disk."""
    needed = int(estimated.bytes * RESERVE)
    if needed > estimated.free:
        raise click.ClickException(
            f"{needed / 1e9:.2f} GB would be written below {estimated.root}, where {estimated.free / 1e9:.2f} GB are "
            "free. Make room, choose another data.project_root, or lower prompt_generation.num_promptsets_*."
        )


def _needs(split: str, settings: Settings, instance: "dg.DagsterInstance") -> Iterator[Need]:
    samples = count_samples(split, settings)
    wanted = samples * settings.prompt_generation.count(check_split_key(split))
    for asset in ("prompt_sets", "sam_cache", "hdf5_pack"):
        lacking = min(wanted, _lacking(asset, split, settings, instance, otherwise=wanted))
        rate = seen_rate(asset, instance)
        seconds = lacking / rate if rate else None
        yield Need(asset, split, lacking, wanted, lacking * BYTES[asset], seconds)


def count_samples(split: str, settings: Settings) -> int:
    """Samples of a split: of its manifest, else what its folders hold, times its share."""
    try:
        return sum(bool(row["valid"]) for row in read_rows(Project.of(settings).manifests, split))
    except NotMade:
        roots = roots_of(settings.data, split)
    found = images.list_samples(roots.images_root, roots.masks_root, images_key=roots.images_key,
                                masks_key=roots.masks_key)  # fmt: skip
    share = FRACTIONS[PARTITION_ROLES.index(split)] if split in PARTITION_ROLES else 1.0
    return round(share * sum(one.reason is None for one in found))


def _lacking(asset: str, split: str, settings: Settings, instance: "dg.DagsterInstance", *, otherwise: int) -> int:
    from sam_laplace_assets.freshness import look
    from sam_laplace_assets.headless import BY_NAME

    found = look(BY_NAME[asset], split, settings, instance)
    if found.wanted == 0:  # it waits for what comes before it
        return otherwise
    return round(otherwise * found.lacking / found.wanted)


def seen_rate(asset: str, instance: "dg.DagsterInstance") -> float | None:
    """Prompt sets a second in the newest materialisation that made any; None if there was none."""
    import dagster as dg

    records = instance.fetch_materializations(dg.AssetKey(asset), limit=20).records
    for record in records:
        materialised = record.asset_materialization
        told = {} if materialised is None else materialised.metadata
        if (rate := told.get("prompt sets per second")) is not None and float(str(rate.value)) > 0:
            return float(str(rate.value))
    return None


def _row(need: Need) -> str:
    hours = "?" if need.lacking and need.seconds is None else f"{(need.seconds or 0) / 3600:.2f}"
    size = f"{need.bytes / 1e9:.2f}"
    return f"{need.asset:<14}{need.split:<20}{need.wanted:>14,}{need.lacking:>10,}{size:>10}{hours:>9}"
