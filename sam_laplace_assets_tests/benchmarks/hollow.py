"""Hollow projects: everything that the ledgers know of is there, with images and arrays that take no room on the disk.

Manifests, prompts, meta.json, ledgers and indices are written by the stores themselves. Images and masks are empty
files, arrays are holes of their full size, and shards of packs have rows that were never written. What is unchanged is
never read, so that a run over them does what it does over real ones; only what is made here is not synced.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from sam_laplace_assets_tests.benchmarks.simulated import ARRAY_BYTES, CLASSES, FAKES, create_with_room, make_room


def hollow_project(folder: Path, *, samples: int, sets: int) -> Path:
    """The settings file of a project in which every asset of these samples is made, up to the packs."""
    import dagster as dg

    from sam_laplace_assets.settings import SETTINGS_VARIABLE
    from sam_laplace_assets_tests.benchmarks.preparing import stages
    from sam_laplace_assets_tests.small_project import SmallProject

    project = SmallProject.new(folder, classes={})
    project.change(prompt_generation={f"num_promptsets_{role}": sets for role in ("train", "val", "test")})
    os.environ[SETTINGS_VARIABLE] = str(project.config)
    _touch(folder, samples)
    with dg.DagsterInstance.ephemeral() as instance, _without_content():
        for asset, split in stages():
            _fill(asset, split, instance)
    return project.config


def _touch(folder: Path, samples: int) -> None:
    """Empty images and masks."""
    for number in range(samples):
        for root, suffix in (("images", "png"), ("masks", "npy")):
            path = folder / root / f"class{number % CLASSES:02d}" / f"{number:07d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def _fill(asset: str, split: str, instance: Any) -> None:
    """Make one stage, its items without looking at an image."""
    from sam_laplace_assets.assets.graph import BY_NAME
    from sam_laplace_assets.freshness import wanted_plan
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.materialise import materialise
    from sam_laplace_assets_tests.benchmarks.preparing import quiet, store_of

    plan = wanted_plan(BY_NAME[asset], split, load_settings(), instance, {})
    makers = {"all_samples": row, "prompt_sets": points, **{name: fake.make for name, fake in FAKES.items()}}
    if (make := makers.get(asset)) is not None:
        plan = replace(plan, make=make, make_all=None, writers=0)
    materialise(plan, store_of(asset, split), progress=quiet)


def row(item: Any, parts: frozenset[str]) -> Mapping[str, Any]:
    """A valid row of a manifest."""
    from sam_laplace_assets.domain.manifest import safe_id
    from sam_laplace_assets.domain.plan import digest

    found = item.source
    return {
        "sample_id": found.sample_id, "safe_id": safe_id(found.sample_id), "class": found.class_name, "split": None,
        "image_path": found.image_path, "mask_path": found.mask_path, "image_h": 1000, "image_w": 1500,
        "mask_h": 1000, "mask_w": 1500, "foreground_fraction": 0.25, "image_digest": digest([found.sample_id, "image"]),
        "mask_digest": digest([found.sample_id, "mask"]), "valid": True, "reason": None,
    }  # fmt: skip


def points(item: Any, parts: frozenset[str]) -> tuple[Any, ...]:
    """Prompt sets of one to ten pairs, whose points depend on the sample alone."""
    from sam_laplace_assets.domain.prompts import PromptSet

    stream, sets = np.random.default_rng(abs(hash(item.key))), []
    for number in range(item.source.drawn.count):
        drawn = stream.integers(1000, size=(2, int(stream.integers(1, 11)), 2)).tolist()
        pos, neg = (tuple((x, y) for x, y in side) for side in drawn)
        sets.append(PromptSet(number, pos, neg))
    return tuple(sets)


@contextmanager
def _without_content() -> Iterator[None]:
    """Arrays become holes, rows of shards are not written, nothing is synced."""
    from sam_laplace_assets.storage import files, shards

    with ExitStack() as stack:
        for module, name, hollow in (
            (files, "sync", lambda path: None),
            (files, "write_set", write_holes),
            (files, "json_bytes", lambda value: json.dumps(value).encode()),
            (shards, "append", make_room),
            (shards.ShardWriter, "_create", create_with_room),
        ):
            stack.enter_context(patch.object(module, name, hollow))
        yield


def write_holes(contents: Mapping[Path, bytes]) -> None:
    """Write files in place; of an array only its size."""
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            path.touch()
            os.truncate(path, ARRAY_BYTES)
        else:
            path.write_bytes(content)
