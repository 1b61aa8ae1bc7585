"""A real project that is made in seconds: drawn shapes, the toy SAM, and a Dagster instance of its own."""

import hashlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import yaml
from PIL import Image

from sam_laplace_assets.demo.toy_sam import TOY_CHECKPOINT
from sam_laplace_assets.headless import refresh
from sam_laplace_assets.settings import SETTINGS_VARIABLE, load_settings
from sam_laplace_assets.storage.project import Project

CLASSES = {"shapes/discs": 8, "boxes": 8}
BASE = ("train", "val", "test")
SPLIT_ASSETS = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels")
SETTINGS = {
    "data": {"images_root": "images", "masks_root": "masks", "project_root": "project", "splits_root": "splits"},
    "prompt_generation": {f"num_promptsets_{role}": 2 for role in BASE} | {"max_pairs": 3},
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

    def refresh(self, *splits, assets=()):
        """Names of the asset partitions that ran."""
        with self.instance() as instance:
            return refresh(instance, splits=splits, assets=assets, tell=lambda line: None)

    def materialise(self, *assets, split=None, raise_on_error=True, **config):
        """Run these assets as the UI would, `config` being the launchpad's fields of the first."""
        from sam_laplace_assets.definitions import defs

        with self.instance() as instance:
            job = defs.get_implicit_global_asset_job_def() if False else _job(assets)
            return defs.resolve_job_def(job).execute_in_process(
                instance=instance,
                partition_key=split,
                asset_selection=[dg.AssetKey(name) for name in assets],
                run_config={"ops": {assets[0]: {"config": config}}} if config else None,
                raise_on_error=raise_on_error,
            )

    def version(self, asset, split=None):
        """Data version of the newest materialisation."""
        return self.materialisation(asset, split).tags["dagster/data_version"]

    def metadata(self, asset, split=None):
        """Metadata of the newest materialisation, as plain values."""
        return {name: one.value for name, one in self.materialisation(asset, split).metadata.items()}

    def materialisation(self, asset, split=None):
        with self.instance() as instance:
            filtered = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[split] if split else None)
            return instance.fetch_materializations(filtered, limit=1).records[0].asset_materialization

    def versions(self):
        """Data versions of all asset partitions of the base splits."""
        found = {(asset, split): self.version(asset, split) for asset in SPLIT_ASSETS for split in BASE}
        found |= {(asset, "train"): self.version(asset, "train") for asset in ("head_checkpoint", "laplace_posterior")}
        return found | {(asset, None): self.version(asset) for asset in ("all_samples", "validation_pack", "champion")}


def _job(assets):
    from sam_laplace_assets.jobs import all_jobs

    jobs = {"all_samples": "scan", "validation_pack": "name_validation_pack", "champion": "choose_champion",
            "head_checkpoint": "train_and_fit", "laplace_posterior": "train_and_fit"}  # fmt: skip
    assert all_jobs
    return jobs.get(assets[0], "prepare_split")


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
