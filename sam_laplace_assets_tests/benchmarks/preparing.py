"""The stages of a split's preparation without Dagster's runs: each asset's plan, carried out by its store."""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

SCAN = ("all_samples", "")
SPLITS = ("train", "val", "test")
TO_THE_PACK = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack")


def stages(assets: Sequence[str] = TO_THE_PACK, splits: Sequence[str] = SPLITS) -> Iterator[tuple[str, str]]:
    """Asset and partition of each stage, in the order of the graph: the scan, then split by split."""
    yield SCAN
    yield from ((asset, split) for split in splits for asset in assets)


def carry_out(asset: str, split: str, instance: dg.DagsterInstance) -> Any:
    """Make what one stage lacks, as its run would; the outcome says what was made."""
    from sam_laplace_assets.assets.graph import BY_NAME
    from sam_laplace_assets.freshness import wanted_plan
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.materialise import materialise

    settings = load_settings()
    plan = wanted_plan(BY_NAME[asset], split, settings, instance, {})
    outcome = materialise(plan, store_of(asset, split), progress=quiet)
    plan.report(outcome.records)
    return outcome


def store_of(asset: str, split: str) -> Any:
    """The store of one stage, as things lie on disk now."""
    from sam_laplace_assets.io_managers import IO_MANAGERS
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.project import Project

    managers = {"all_samples": "all_samples_io", "manifest": "manifest_io", "prompt_sets": "prompts_io",
                "sam_cache": "sam_io", "training_index": "index_io", "hdf5_pack": "pack_io"}  # fmt: skip
    return IO_MANAGERS[managers[asset]].store(Project.of(load_settings()), split)


def quiet(done: int, failed: int, total: int, unit: str) -> None:
    """Progress that nobody hears."""
