"""`sam-laplace plan`: what would be made, how large it gets, and how long it takes at the rate seen so far."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sam_laplace_assets.domain.manifest import FRACTIONS, PARTITION_ROLES, check_split_key
from sam_laplace_assets.settings import SamSettings, Settings, load_settings
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets.storage.project import Project, roots_of
from sam_laplace_assets.storage.samples import list_samples
from sam_laplace_assets.storage.store import NotMade

if TYPE_CHECKING:
    import dagster as dg

BLOCK = 4096  # files take whole blocks
PIXELS = 256 * 256
BYTES_A_SET = {"sam_cache": 3 * 2 * PIXELS + 4 * BLOCK, "hdf5_pack": 3 * 2 * PIXELS, "prompt_sets": 512}
BYTES_A_SAMPLE = {"sam_cache": 0, "hdf5_pack": PIXELS, "prompt_sets": BLOCK}
UNITS = {"prompt_sets": "samples", "sam_cache": "prompt sets", "hdf5_pack": "samples"}
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
        hours = "? hours" if unknown else f"{sum(need.seconds or 0 for need in self.needs) / 3600:.2f} hours"
        notes = ["hours are known once a run has shown its rate: try one with `limit` in the UI's launchpad"]
        sizes = f"to write: {self.bytes / 1e9:.2f} GB, {hours}; free below {self.root}: {self.free / 1e9:.2f} GB"
        return "\n".join([head, *map(_row, self.needs), "", sizes, *(notes if unknown else [])])


def estimate(instance: "dg.DagsterInstance", splits: Sequence[str]) -> Estimate:
    """What is lacking of prompt sets, cache and pack, split by split."""
    from sam_laplace_assets.partitions import check_split, known_splits

    settings = load_settings()
    chosen = [check_split(key, settings.data) for key in splits] or known_splits(settings.data)
    needs = [need for split in chosen for need in _needs(split, settings, instance)]
    if any(need.lacking for need in needs if need.asset == "sam_cache"):
        require_sam(settings.sam)
    root = next(path for path in (settings.data.project_root, *settings.data.project_root.parents) if path.exists())
    return Estimate(needs, shutil.disk_usage(root).free, settings.data.project_root)


def require_sam(sam: SamSettings) -> None:
    """Refuse now what would be refused once prompts are drawn: a checkpoint that is not there, a GPU that is not."""
    if sam.checkpoint is not None and not sam.checkpoint.is_file():
        raise click.ClickException(f"SAM checkpoint {sam.checkpoint} is not there. Set sam.checkpoint to one that is.")
    if sam.device == "cuda":
        from sam_laplace_assets.resources.checkpoints import resolve_device

        resolve_device(sam.device)


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
    sets = samples * settings.prompt_generation.count(check_split_key(split))
    share = 0.0
    for asset, unit in UNITS.items():
        share = max(share, _lacking_share(asset, split, settings, instance))  # what follows stale data is made again
        rate = seen_rate(asset, unit, instance)
        seconds = share * (sets if unit == "prompt sets" else samples) / rate if rate else None
        size = round(share * (sets * BYTES_A_SET[asset] + samples * BYTES_A_SAMPLE[asset]))
        yield Need(asset, split, round(share * sets), sets, size, seconds)


def count_samples(split: str, settings: Settings) -> int:
    """Samples of a split: of its manifest, else what its folders hold, times its share."""
    try:
        return sum(bool(row["valid"]) for row in read_rows(Project.of(settings).manifests, split))
    except NotMade:
        roots = roots_of(settings.data, split)
    found = list_samples(roots.images_root, roots.masks_root, images_key=roots.images_key,
                         masks_key=roots.masks_key, allow_links_out=settings.data.allow_links_out)  # fmt: skip
    share = FRACTIONS[PARTITION_ROLES.index(split)] if split in PARTITION_ROLES else 1.0
    return round(share * sum(one.reason is None for one in found))


def _lacking_share(asset: str, split: str, settings: Settings, instance: "dg.DagsterInstance") -> float:
    from sam_laplace_assets.assets.graph import BY_NAME
    from sam_laplace_assets.freshness import look

    found = look(BY_NAME[asset], split, settings, instance)
    return found.lacking / found.wanted if found.wanted else 1.0  # 1: it waits for what comes before it


def seen_rate(asset: str, unit: str, instance: "dg.DagsterInstance") -> float | None:
    """Units a second in the newest materialisation that made any; None if there was none."""
    import dagster as dg

    for record in instance.fetch_materializations(dg.AssetKey(asset), limit=20).records:
        materialised = record.asset_materialization
        told = {} if materialised is None else materialised.metadata
        if (rate := told.get(f"{unit} per second")) is not None and float(str(rate.value)) > 0:
            return float(str(rate.value))
    return None


def _row(need: Need) -> str:
    hours = "?" if need.lacking and need.seconds is None else f"{(need.seconds or 0) / 3600:.2f}"
    size = f"{need.bytes / 1e9:.2f}"
    return f"{need.asset:<14}{need.split:<20}{need.wanted:>14,}{need.lacking:>10,}{size:>10}{hours:>9}"
