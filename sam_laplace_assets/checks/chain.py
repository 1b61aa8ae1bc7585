"""Whether samples or prompt sets get lost on their way from a split's manifest to its pack."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import dagster as dg

from sam_laplace_assets.checks.findings import ERROR, WARN, Finding, by_partition, listed
from sam_laplace_assets.checks.pack import Pair, indexed_rows, packed_rows
from sam_laplace_assets.reporting import markdown_table
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage.manifest import is_complete, read_rows
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.prompts import Prompts
from sam_laplace_assets.storage.sam import SamCache

MAY_FAIL = ("prompt_sets", "sam_cache", "hdf5_pack")
"""Assets that put up with failed samples; an index takes whatever the cache holds."""


@dg.asset_check(asset="hdf5_pack", blocking=True)
def nothing_is_lost_on_the_way(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Manifest, prompt sets, SAM cache, index and pack of a split hold the same samples and prompt sets."""
    settings = load_settings()
    there = Project.of(settings).packed_splits()
    return by_partition(context, there, lambda split: follow(links_of(split, Project.of(settings)), settings))


@dataclass(frozen=True)
class Link:
    """What one asset of the chain holds of a split.

    Attributes:
        asset: its name.
        samples: safe_ids.
        sets: (safe_id, promptset_id); None where the asset knows of none.
        complete: whether it says that it holds all that it should.
    """

    asset: str
    samples: frozenset[str]
    sets: frozenset[Pair] | None
    complete: bool

    @classmethod
    def of_rows(cls, asset: str, rows: Iterable[Pair], *, complete: bool) -> "Link":
        """A link that knows prompt sets, from the names of its rows."""
        sets = frozenset(rows)
        return cls(asset, frozenset(name for name, _ in sets), sets, complete)


def links_of(split: str, project: Project) -> list[Link]:
    """The five assets of a split, upstream first. Raises `NotMade`, or ValueError where one is damaged."""
    rows = read_rows(project.manifests, split)
    samples = frozenset(str(row["safe_id"]) for row in rows if row["valid"])
    prompts = Prompts.open(project.prompt_sets(split), split=split)
    drawn = ((key, int(name)) for key, sets in prompts.points.items() for name in sets)
    cache = SamCache.open(project.sam_cache(split), split=split)
    cached = ((key, one.promptset_id) for key in cache.records for one in cache.sets(key))
    indexed, all_indexed = indexed_rows(split, project)
    pack = Pack.open(project.pack(split))
    return [
        Link("manifest", samples, None, is_complete(project.manifests, split)),
        Link.of_rows("prompt_sets", drawn, complete=prompts.complete),
        Link.of_rows("sam_cache", cached, complete=cache.complete),
        Link.of_rows("training_index", indexed, complete=all_indexed),
        Link.of_rows("hdf5_pack", packed_rows(pack.path), complete=pack.complete),
    ]


def follow(links: list[Link], settings: Settings) -> Finding:
    """What is lost from each link to the next; a warning where that was tolerated, or a trial."""
    found = [one for upper, lower in pairwise(links) for one in _lost(upper, lower, settings)]
    counts = [{"asset": link.asset, "samples": len(link.samples),
               "prompt sets": "-" if link.sets is None else len(link.sets)} for link in links]  # fmt: skip
    severity = ERROR if any(one.severity is ERROR for one in found) else WARN
    complaint = " ".join(one.complaint for one in found)
    return Finding(complaint, severity, {"counts": dg.MetadataValue.md(markdown_table(counts))})


def _lost(upper: Link, lower: Link, settings: Settings) -> Iterator[Finding]:
    """What is wrong from one link to the next."""
    again = f"Materialise {lower.asset} again."
    if foreign := lower.samples - upper.samples:
        yield Finding(f"{lower.asset} has {len(foreign)} samples that {upper.asset} lacks: {listed(foreign)}. {again}")
    if gone := upper.samples - lower.samples:
        yield _gone(gone, upper, lower, settings.data.max_failed_fraction)
    fewer, more = _other_sets(upper, lower), _other_sets(lower, upper)
    if fewer or more:
        yield Finding(f"{lower.asset} has {len(fewer)} prompt sets less and {len(more)} more than {upper.asset} has "
                      f"for the same samples: {listed(fewer | more)}. {again}")  # fmt: skip


def _gone(names: frozenset[str], upper: Link, lower: Link, max_failed_fraction: float) -> Finding:
    """How bad it is that a link lacks samples of the one before."""
    what = f"{lower.asset} lacks {len(names)} of the {len(upper.samples)} samples of {upper.asset}: {listed(names)}"
    if not lower.complete:
        return Finding(f"{what}. It says that it is not complete: a trial (`limit`), or too many failed.", WARN)
    if lower.asset in MAY_FAIL and len(names) <= max_failed_fraction * len(upper.samples):
        return Finding(f"{what}. data.max_failed_fraction lets that many fail; its materialisation says why.", WARN)
    return Finding(f"{what}. Materialise {lower.asset} again.")


def _other_sets(one: Link, other: Link) -> set[str]:
    """Prompt sets of `one` that `other` lacks, of the samples that both have."""
    if one.sets is None or other.sets is None:
        return set()
    return {f"{name} set {number}" for name, number in one.sets - other.sets if name in other.samples}
