"""A real project that is made in seconds: drawn shapes, the toy SAM, and a Dagster instance of its own."""

import contextlib
import hashlib
import io
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import yaml
from PIL import Image

from sam_laplace_assets.definitions import defs
from sam_laplace_assets.demo.toy_sam import TOY_CHECKPOINT
from sam_laplace_assets.headless import refresh
from sam_laplace_assets.jobs import OF_THE_CHAMPION
from sam_laplace_assets.settings import SETTINGS_VARIABLE, load_settings
from sam_laplace_assets.storage.project import Project

REPOSITORY = Path(__file__).parents[1]
CLASSES = {"shapes/discs": 8, "boxes": 8}
BASE = ("train", "val", "test")
SPLIT_ASSETS = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels")
NO_LOGS = """
compute_logs:
  module: dagster._core.storage.noop_compute_log_manager
  class: NoOpComputeLogManager
"""
JOBS = {
    "all_samples": "scan",
    "validation_pack": "name_validation_pack",
    "head_checkpoint": "train_and_fit",
    "laplace_posterior": "train_and_fit",
    "posterior_sweep": "sweep_posteriors",
    "champion": "choose_champion",
    "evaluation": "evaluate",
    "prompt_scores": "evaluate",
    "active_prompting": "prompt_actively",
}
SETTINGS = {
    "data": {"images_root": "images", "masks_root": "masks", "project_root": "project", "splits_root": "splits"},
    "prompt_generation": {f"num_promptsets_{role}": 2 for role in BASE} | {"max_pairs": 3},
    "head": {"hidden_channels": 4},
    "sam": {"model_type": "toy", "checkpoint": "sam.pt", "device": "cpu"},
    "training": {"num_epochs": 2, "num_workers": 0, "batch_size": 8, "lr": 0.01},
    "laplace": {"prior_precision_grid": [0.01, 1.0, 100.0]},
    "champion": {"resamples": 200},
    "mlflow": {"enabled": False},
}


def draw(seed, *, size=(40, 60), disc=True):
    """A shape on a noisy ground, (H, W, 3) uint8, and its mask, (H, W) bool."""
    stream = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centre, radius = stream.uniform(0.3, 0.7, 2) * size, stream.uniform(0.15, 0.25) * min(size)
    dy, dx = abs(y - centre[0]), abs(x - centre[1])
    mask = (np.hypot(dy, dx) if disc else np.maximum(dy, dx)) <= radius
    ground, object_ = stream.integers(0, 110, 3), stream.integers(150, 256, 3)
    image = np.where(mask[..., None], object_, ground) + stream.normal(0, 4, (*size, 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def add_sample(folder, sample_id, seed, *, image=None, mask=None):
    """Write images/<sample_id> and masks/<sample_id>; the formats take turns."""
    drawn, its_mask = draw(seed, size=(40, 60) if seed % 2 else (64, 48), disc="discs" in sample_id)
    image, mask = drawn if image is None else image, its_mask if mask is None else mask
    image_path = folder / "images" / f"{sample_id}{'.jpg' if seed % 3 == 0 else '.png'}"
    mask_path = folder / "masks" / f"{sample_id}{'.png' if seed % 4 == 0 else '.npy'}"
    for path in (image_path, mask_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(image_path)
    if mask_path.suffix == ".npy":
        np.save(mask_path, mask)
    else:
        Image.fromarray(mask.astype(np.uint8) * 255).save(mask_path)
    return image_path, mask_path


@dataclass(frozen=True)
class SmallProject:
    """Images, masks, settings, checkpoint, project root and DAGSTER_HOME, all below one folder."""

    folder: Path

    @classmethod
    def new(cls, folder, *, classes=CLASSES, **changes):
        seed = 0
        for name, count in classes.items():
            for number in range(count):
                add_sample(folder, f"{name}/{number:02d}", seed)
                seed += 1
        shutil.copyfile(TOY_CHECKPOINT, folder / "sam.pt")
        (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
        (folder / "dagster_home").mkdir()
        (folder / "dagster_home" / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text() + NO_LOGS)
        project = cls(folder)
        project.change(**changes)
        return project

    def copy(self, folder):
        """The same project elsewhere; file times stay."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return SmallProject(folder)

    def use(self, monkeypatch):
        """Make its settings the ones in force."""
        monkeypatch.setenv(SETTINGS_VARIABLE, str(self.config))
        monkeypatch.setenv("DAGSTER_HOME", str(self.folder / "dagster_home"))
        return self

    def change(self, **sections):
        """Put values into sections of the settings file."""
        settings = yaml.safe_load(self.config.read_text())
        for section, values in sections.items():
            settings[section] = settings.get(section, {}) | values
        self.config.write_text(yaml.safe_dump(settings))

    @property
    def config(self):
        return self.folder / "config.yaml"

    @property
    def settings(self):
        return load_settings(self.config)

    @property
    def root(self):
        return self.folder / "project"

    @property
    def paths(self):
        return Project.of(self.settings)

    def instance(self):
        return dg.DagsterInstance.local_temp(str(self.folder / "dagster_home"))

    def refresh(self, *splits, assets=(), keep_overrides=True):
        """Names of the asset partitions that ran."""
        with self.instance() as instance:
            return refresh(instance, splits=splits, assets=assets, keep_overrides=keep_overrides,
                           tell=lambda line: None)  # fmt: skip

    def materialise(self, *assets, split=None, **config):
        """Run these assets of one job as the UI would, `config` being the launchpad's fields of the first.

        A key that is not registered is added, as the GraphQL API would accept it.
        """
        with self.instance() as instance:
            if split is not None:
                instance.add_dynamic_partitions("sam_split", [split])
                instance.add_dynamic_partitions("sam_training_split", [split])
            return defs.resolve_job_def(JOBS.get(assets[0], "prepare_split")).execute_in_process(
                instance=instance,
                partition_key=split,
                asset_selection=[dg.AssetKey(name) for name in assets],
                run_config={"ops": {assets[0]: {"config": config}}} if config else None,
                raise_on_error=False,
            )

    def version(self, asset, split=None):
        """Data version of the newest materialisation."""
        with self.instance() as instance:
            return version(instance, asset, split)

    def metadata(self, asset, split=None):
        """Metadata of the newest materialisation, as plain values."""
        with self.instance() as instance:
            return {name: one.value for name, one in newest(instance, asset, split).metadata.items()}

    def versions(self):
        """Data versions of all asset partitions of the base splits."""
        wanted = [(asset, split) for asset in SPLIT_ASSETS for split in BASE]
        wanted += [(asset, "train") for asset in ("head_checkpoint", "laplace_posterior")]
        wanted += [(asset, None) for asset in ("all_samples", "validation_pack", "champion")]
        wanted += [(asset, "test") for asset in OF_THE_CHAMPION]
        with self.instance() as instance:
            return {one: version(instance, *one) for one in wanted}


def newest(instance, asset, split):
    """The newest materialisation."""
    filtered = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[split] if split else None)
    return instance.fetch_materializations(filtered, limit=1).records[0].asset_materialization


def version(instance, asset, split):
    """Its data version."""
    return newest(instance, asset, split).tags["dagster/data_version"]


def hashes(folder):
    """SHA-256 of every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def failure(result):
    """What the UI says of the first step that failed."""
    data = result.get_step_failure_events()[0].step_failure_data
    if data.user_failure_data is not None:
        return data.user_failure_data.description
    return f"{data.error.cls_name}: {data.error.message} {data.error.cause.message if data.error.cause else ''}"


def count_calls(monkeypatch, owner, name):
    """Count the calls of a method that goes on to work."""
    original, calls = getattr(owner, name), Counter()

    def counted(*args, **kwargs):
        calls[name] += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


@contextlib.contextmanager
def copied(made, folder):
    """A copy of a made project, to be changed once for a module; its settings are in force in the block."""
    with pytest.MonkeyPatch.context() as patch:
        draw_plainly(patch)
        yield made.copy(folder).use(patch)


def with_fewer_sets(made, folder, *, once):
    """A copy of a made project whose split `test` was once given so many prompt sets a sample, and is back at two."""
    with copied(made, folder) as project:
        for count in (once, 2):
            project.change(prompt_generation={"num_promptsets_test": count})
            project.refresh()
    return project


def draw_plainly(monkeypatch):
    """Save a small white picture wherever Matplotlib would draw one."""
    buffer = io.BytesIO()
    Image.new("RGB", (110, 2), "white").save(buffer, "PNG")
    monkeypatch.setattr("sam_laplace_assets.assets.pictures.as_png", lambda figure: buffer.getvalue())
