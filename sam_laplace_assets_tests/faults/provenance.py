"""What a change makes again: a row for every setting, for every algorithm's version, and for what lies in the files."""

import importlib
import json
import pkgutil
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import yaml
from PIL import Image

import sam_laplace_assets.assets
import sam_laplace_assets.domain
from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.headless import refresh
from sam_laplace_assets.settings import Section, Settings
from sam_laplace_assets.storage.champion import read_champion
from sam_laplace_assets_tests.small_project import BASE, SmallProject, add_sample, draw, newest

COUNTS = {"train": 2, "val": 1, "test": 1}
SETS, EPOCHS = 2, 2
OFFICIAL = {"boxes/00": "train", "boxes/01": "train", "boxes/02": "val", "boxes/03": "test"}
NEW = "test-new"
Change = Callable[[SmallProject, object], object]


def tiny(folder):
    """A project of four images of which nothing is made; two are for training, one judges, one tests."""
    project = SmallProject.new(folder, classes={"boxes": len(OFFICIAL)})
    add_sample(folder / "new", "boxes/new", 77)
    lines = [f"{sample},{split}" for sample, split in OFFICIAL.items()]
    (folder / "official.csv").write_text("\n".join(["sample_id,split", *lines]) + "\n")
    project.change(data={"splits_file": "official.csv"})
    return project


def made_tiny(folder, monkeypatch):
    """The same with everything made; which sample is in which split is remembered, and no longer told."""
    project = tiny(folder).use(monkeypatch)
    project.refresh()
    project.change(data={"splits_file": None})
    return project


@dataclass(frozen=True)
class Row:
    """A change, and what a refresh makes again for it.

    Attributes:
        change: makes it; gets the project and a monkeypatch that ends with it.
        again: asset partition -> how many of its items; what runs and makes none is not named.
        images: how many the encoder gets.
        answers: how many prompt sets the decoder is asked about.
        first: settings that are changed, and refreshed for, beforehand.
        asked: assets that are made before, and asked for by name.
        drawn: whether prompt sets are drawn anew, so that what follows is that of the sets whose points then differ.
        equal: whether what is made again holds the same as before.
        returns: whether the old settings and files are put back, too; it takes as long again.
    """

    change: Change
    again: Mapping[str, int] = field(default_factory=dict)
    images: int = 0
    answers: int = 0
    first: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    drawn: bool = False
    equal: bool = False
    returns: bool = False


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did: asset partition -> items made, those that ran, images encoded and prompt sets answered."""

    made: Mapping[str, int]
    ran: tuple[str, ...]
    images: int
    answers: int


def refreshed(project, monkeypatch, *, asked=()):
    """Refresh, and count."""
    calls = Counter()
    prepare, answer = FrozenSam.prepare, FrozenSam.ask_many

    def counted_prepare(self, *args, **kwargs):
        calls["images"] += 1
        return prepare(self, *args, **kwargs)

    def counted_answer(self, pairs, **kwargs):
        pairs = list(pairs)
        calls["answers"] += sum(len(sets) for _, sets in pairs)
        return answer(self, pairs, **kwargs)

    with monkeypatch.context() as patch, project.instance() as instance:
        patch.setattr(FrozenSam, "prepare", counted_prepare)
        patch.setattr(FrozenSam, "ask_many", counted_answer)
        ran = refresh(instance, tell=lambda line: None)
        if asked:
            ran += refresh(instance, assets=asked, tell=lambda line: None)
        made = {name: count for name in ran if (count := items_made(instance, name))}
    return Refreshed(made, tuple(ran), calls["images"], calls["answers"])


def items_made(instance, name):
    """How many items the newest materialisation of `asset[split]` made."""
    asset, _, split = name.removesuffix("]").partition("[")
    told = newest(instance, asset, split or None).metadata
    return int(next(one.value for key, one in told.items() if key.endswith(" made")))


def holder(project):
    """Run id of the champion."""
    return read_champion(project.paths.posteriors).run_id


@dataclass(frozen=True)
class Before:
    """Who held the title, and the points of every prompt set."""

    title: str
    points: Mapping[tuple[str, str, str], object]

    @classmethod
    def of(cls, project):
        return cls(holder(project), points_of(project))


def points_of(project):
    """(split, sample, prompt set) -> its points."""
    found = {}
    for split in BASE:
        for path in sorted(project.paths.prompt_sets(split).glob("*.json")):
            for one in json.loads(path.read_text())["prompt_sets"]:
                found[split, path.stem, f"{one['promptset_id']:04d}"] = (one["pos"], one["neg"])
    return found


def expected(row, project, before):
    """What should be made again, images that are encoded, and prompt sets that are answered.

    The champion is put to use anew where the title moved.
    """
    again, asked = dict(row.again), (row.images, row.answers)
    if row.drawn:
        now = points_of(project)
        other = [one for one in now if now[one] != before.points.get(one)]
        again |= follows_from(other, sorted({(split, sample) for split, sample, _ in now}))
        asked = len({sample for _, sample, _ in other}), len(other)
    return again | (USED if holder(project) != before.title else {}), *asked


def follows_from(other, samples):
    """What is made from prompt sets with other points."""
    found = {}
    for split in sorted({split for split, _, _ in other}):
        sets = [(sample, name) for at, sample, name in other if at == split]
        found |= {f"sam_cache[{split}]": len(sets), f"training_index[{split}]": 1}
        found |= {f"hdf5_pack[{split}]": len({sample for sample, _ in sets})}
        shown = [(sample, f"{at % SETS:04d}") for at, (_, sample) in
                 enumerate(one for one in samples if one[0] == split)]  # fmt: skip
        if panels := len(set(shown) & set(sets)):
            found |= {f"sanity_panels[{split}]": panels}
    return found | follows(*{split for split, _, _ in other})


# What follows from what.

USED = {"evaluation[test]": 1, "prompt_scores[test]": 1}
JUDGED_BY = {"validation_pack": 1}
FITTED = {"laplace_posterior[train]": 1, "champion": 1}
SAME_WEIGHTS = {"head_checkpoint[train]": EPOCHS}  # on a CPU: the posterior is that of the weights
TRAINED = {**SAME_WEIGHTS, **FITTED}


def features(*splits, sets=SETS, panels=True):
    """The cache of some splits with `sets` prompt sets a sample, and what is packed and drawn from it."""
    found = {}
    for split in splits:
        count = COUNTS[split]
        found |= {f"sam_cache[{split}]": sets * count, f"training_index[{split}]": 1, f"hdf5_pack[{split}]": count}
        found |= {f"sanity_panels[{split}]": count} if panels else {}
    return {name: count for name, count in found.items() if count}


def follows(*splits):
    """What is made from the packs of some splits."""
    found = {}
    if "val" in splits:
        found |= JUDGED_BY | TRAINED | {"evaluation[test]": 1}
    if "train" in splits:
        found |= TRAINED
    return found | (USED if "test" in splits else {})


def prompts(*splits):
    """The prompt sets of some splits."""
    return {f"prompt_sets[{split}]": COUNTS[split] for split in splits}


ALL = features(*BASE) | follows(*BASE)
IMAGES, ANSWERS = sum(COUNTS.values()), SETS * sum(COUNTS.values())
OF_NEW = {f"manifest[{NEW}]": 1, f"prompt_sets[{NEW}]": 1, f"sam_cache[{NEW}]": SETS, f"training_index[{NEW}]": 1,
          f"hdf5_pack[{NEW}]": 1, f"sanity_panels[{NEW}]": 1, f"evaluation[{NEW}]": 1,
          f"prompt_scores[{NEW}]": 1}  # fmt: skip


# Changes.


def put(**sections):
    """Settings."""
    return lambda project, monkeypatch: project.change(**sections)


def to(section, key, value):
    """One setting."""
    return put(**{section: {key: value}})


def moved(key, name):
    """A folder of the user's, elsewhere."""

    def change(project, monkeypatch):
        (project.folder / name).rename(project.folder / f"moved_{name}")
        project.change(data={key: f"moved_{name}"})

    return change


def other_split(project, monkeypatch):
    """An official split that has the test sample train, and a training sample test."""
    lines = [f"{sample},{split}" for sample, split in OFFICIAL.items()]
    lines[1], lines[3] = "boxes/01,test", "boxes/03,train"
    (project.folder / "other.csv").write_text("\n".join(["sample_id,split", *lines]) + "\n")
    project.change(data={"splits_file": "other.csv"})


def found_split(project, monkeypatch):
    """A named split below another `splits_root`."""
    shutil.copytree(project.folder / "new", project.folder / "found" / NEW)
    project.change(data={"splits_root": "found"})


def other_checkpoint(project, monkeypatch):
    """Weights that are a little different."""
    weights = torch.load(project.folder / "sam.pt", weights_only=True)
    weights["mask_decoder.iou_token.weight"] += 0.5
    torch.save(weights, project.folder / "other.pt")
    project.change(sam={"checkpoint": "other.pt"})


def other_model(project, monkeypatch):
    """Another type of SAM by its name; what is loaded for it is the toy, as there is no other checkpoint here."""
    from sam_laplace_assets.resources import checkpoints

    load = checkpoints.load_frozen_sam
    monkeypatch.setattr(checkpoints, "load_frozen_sam", lambda name, *args, **kwargs: load("toy", *args, **kwargs))
    project.change(sam={"model_type": "vit_b"})


def other_pixels(project, monkeypatch):
    """The negative of the test image."""
    path = next((project.folder / "images").glob("boxes/03.*"))
    pixels = 255 - np.array(Image.open(path))
    Image.fromarray(pixels).save(path)


def other_mask(project, monkeypatch):
    """Another shape as mask of the test image."""
    path = next((project.folder / "masks").glob("boxes/03.*"))
    old = np.load(path) if path.suffix == ".npy" else np.array(Image.open(path)) > 0
    _, mask = draw(901, size=old.shape, disc=True)
    if path.suffix == ".npy":
        np.save(path, mask)
    else:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)


def raised(name):
    """The version of an algorithm, in every module that reads it."""

    def change(project, monkeypatch):
        for module in [one for key, one in sys.modules.items() if key.startswith("sam_laplace_assets.")]:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, f"{getattr(module, name)}x")

    return change


def touched(project, monkeypatch):
    """Another time on every file of the user's and of the project's."""
    for folder in ("images", "masks", "project"):
        for path in (project.folder / folder).rglob("*.*"):
            path.touch()
    (project.folder / "sam.pt").touch()


INTERACTIVE = {"prompt_generation": {"mode": "interactive"}}
EXCHANGED = {f"{asset}[{split}]": count for split in ("train", "test") for asset, count in
             {"manifest": 1, "prompt_sets": 1, "sam_cache": SETS, "training_index": 1, "hdf5_pack": 1,
              "sanity_panels": 1}.items()} | follows("train", "test")  # fmt: skip
ONE_MORE_TEST = {"prompt_sets[test]": 1, **features("test", sets=1, panels=False), **USED}
SETTINGS = {
    "data.images_root": Row(moved("images_root", "images")),
    "data.masks_root": Row(moved("masks_root", "masks")),
    "data.project_root": Row(moved("project_root", "project")),
    "data.splits_root": Row(found_split, OF_NEW, images=1, answers=SETS),
    "data.splits": Row(
        to("data", "splits", {NEW: {"images_root": "new/images", "masks_root": "new/masks"}}), OF_NEW,
        images=1, answers=SETS,
    ),
    "data.splits_file": Row(other_split, EXCHANGED, images=2, answers=2 * SETS),
    "data.group_by": Row(to("data", "group_by", "(.*)"), {"evaluation[test]": 1}),
    "prompt_generation.num_promptsets_train": Row(
        to("prompt_generation", "num_promptsets_train", 3),
        {**prompts("train"), **features("train", sets=1, panels=False), **TRAINED}, images=2, answers=2,
    ),
    "prompt_generation.num_promptsets_val": Row(
        to("prompt_generation", "num_promptsets_val", 3),
        {**prompts("val"), **features("val", sets=1, panels=False), **follows("val")}, images=1, answers=1,
    ),
    "prompt_generation.num_promptsets_test": Row(
        to("prompt_generation", "num_promptsets_test", 3), ONE_MORE_TEST, images=1, answers=1,
        returns=True,
    ),
    "prompt_generation.num_promptsets_test (one fewer)": Row(
        to("prompt_generation", "num_promptsets_test", 1),
        {**prompts("test"), **features("test", sets=0, panels=False), **USED},
    ),
    "prompt_generation.mode": Row(put(**INTERACTIVE), prompts(*BASE), drawn=True, returns=True),
    "prompt_generation.min_pairs": Row(
        to("prompt_generation", "min_pairs", 3), prompts(*BASE), drawn=True
    ),
    "prompt_generation.max_pairs": Row(
        to("prompt_generation", "max_pairs", 9), prompts(*BASE), drawn=True
    ),
    "prompt_generation.max_clicks (interactive)": Row(
        to("prompt_generation", "max_clicks", 3), prompts(*BASE), drawn=True, first=INTERACTIVE
    ),
    "prompt_generation.click_jitter (interactive)": Row(
        to("prompt_generation", "click_jitter", 0.9), prompts(*BASE), drawn=True, first=INTERACTIVE
    ),
    "prompt_generation.prompt_seed": Row(
        to("prompt_generation", "prompt_seed", 1), prompts(*BASE), drawn=True, returns=True,
    ),
    "prompt_generation.gaussian_sigma": Row(to("prompt_generation", "gaussian_sigma", 5), ALL, returns=True),
    "sam.checkpoint": Row(other_checkpoint, ALL, IMAGES, ANSWERS),
    "sam.model_type": Row(
        other_model, {f"sam_cache[{split}]": SETS * COUNTS[split] for split in BASE}, IMAGES, ANSWERS, equal=True
    ),
    "sam.precision": Row(to("sam", "precision", "bf16"), ALL, IMAGES, ANSWERS, returns=True),
    "sam.cache_embeddings (float16)": Row(to("sam", "cache_embeddings", "float16"), ALL, IMAGES, ANSWERS, returns=True),
    "head.hidden_channels": Row(to("head", "hidden_channels", 5), TRAINED),
    "training.batch_size": Row(to("training", "batch_size", 2), TRAINED),
    "training.num_epochs": Row(to("training", "num_epochs", 3), TRAINED | {"head_checkpoint[train]": 3}),
    "training.lr": Row(to("training", "lr", 0.02), TRAINED, returns=True),
    "training.weight_decay": Row(to("training", "weight_decay", 0.1), TRAINED),
    "training.dice_lambda": Row(to("training", "dice_lambda", 0.1), TRAINED),
    "training.amp": Row(to("training", "amp", False), SAME_WEIGHTS),
    "training.early_stop_patience": Row(to("training", "early_stop_patience", 4), SAME_WEIGHTS),
    "training.logit_clip": Row(to("training", "logit_clip", 10.0), TRAINED),
    "training.seed": Row(to("training", "seed", 1), TRAINED),
    "laplace.approx": Row(to("laplace", "approx", "full"), FITTED),
    "laplace.prior_precision_grid": Row(to("laplace", "prior_precision_grid", [0.1, 10.0, 1e6]), FITTED, returns=True),
    "laplace.prior": Row(to("laplace", "prior", "marginal_likelihood"), FITTED),
    "laplace.likelihood_temperature": Row(to("laplace", "likelihood_temperature", 2.0), FITTED),
    "laplace.logit_scaling": Row(to("laplace", "logit_scaling", True), FITTED),
    "laplace.sweep (asked for)": Row(
        to("laplace", "sweep", [{"approx": "diagonal"}]), {"posterior_sweep[train]": 1},
        first={"laplace": {"sweep": [{"approx": "full"}]}}, asked=("posterior_sweep",),
    ),
    "champion.confidence": Row(to("champion", "confidence", 0.9), {"champion": 1}),
    "champion.resamples": Row(to("champion", "resamples", 150), {"champion": 1}),
    "champion.seed": Row(to("champion", "seed", 1), {"champion": 1}),
    "champion.allow_overrides": Row(to("champion", "allow_overrides", True), {"champion": 1}),
    "prompting.strategy": Row(to("prompting", "strategy", "entropy"), {"prompt_scores[test]": 1}),
    "prompting.suggestions": Row(to("prompting", "suggestions", 3), {"prompt_scores[test]": 1}),
    "prompting.spacing": Row(to("prompting", "spacing", 8.0), {"prompt_scores[test]": 1}),
    "prompting.border": Row(to("prompting", "border", 4), {"prompt_scores[test]": 1}),
    "prompting.earlier_radius": Row(to("prompting", "earlier_radius", 5.0), {"prompt_scores[test]": 1}),
    "prompting.seed": Row(to("prompting", "seed", 1), {"prompt_scores[test]": 1}),
    "storage.table_format": Row(
        to("storage", "table_format", "csv"),
        {**{f"training_index[{split}]": 1 for split in BASE}, "evaluation[test]": 1}, equal=True, returns=True,
    ),
    "automation.use_champion_on": Row(
        to("automation", "use_champion_on", ["val", "test"]), {"evaluation[val]": 1, "prompt_scores[val]": 1}
    ),
}  # fmt: skip
"""Setting -> what another value of it makes again; a remark in brackets tells rows of one setting apart."""

NOTHING = {
    "data.split_seed": 5,
    "data.allow_links_out": True,
    "data.max_failed_fraction": 0.5,
    "prompt_generation.max_clicks": 7,
    "prompt_generation.click_jitter": 0.1,
    "sam.device": "auto",
    "sam.cache_embeddings": "float32",
    "sam.compile": True,
    "sam.images_per_batch": 3,
    "sam.prompt_sets_per_batch": 3,
    "sam.io_threads": 3,
    "training.num_workers": 3,
    "training.memory_budget": 1.0,
    "laplace.sweep": [{"approx": "full"}],
    "active_prompting.strategies": ["random"],
    "active_prompting.clicks": 3,
    "active_prompting.seeds": [1],
    "active_prompting.first_click_jitter": 1.0,
    "active_prompting.click_jitter": 1.0,
    "active_prompting.border": 1,
    "active_prompting.earlier_radius": 2.0,
    "mlflow.enabled": True,
    "mlflow.experiment": "another",
    "mlflow.tracking_uri": "http://127.0.0.1:9",
    "automation.debounce_seconds": 1.0,
    "alerts.command": "true",
    "alerts.webhook": "http://127.0.0.1:9",
    "compute.scheduler": "local",
    "compute.workers": 2,
    "compute.resources": {"GPU": 1},
    "compute.chunk_seconds": 1.0,
    "instance.storage": "postgres",
    "retention.runs": 1,
}
"""Settings of which another value makes nothing again."""

ONE_VALUE = {"head.channels_in": 4, "laplace.target_layer": "conv1"}
"""Settings that have one value, and another that is refused."""

PACKED_ANEW = {f"hdf5_pack[{split}]": COUNTS[split] for split in BASE} | follows(*BASE)
VERSIONS = {
    "ROWS_VERSION": Row(raised("ROWS_VERSION"), {"all_samples": len(OFFICIAL)}, equal=True),
    "PROMPTS_VERSION": Row(raised("PROMPTS_VERSION"), prompts(*BASE), equal=True),
    "INTERACTIVE_VERSION": Row(raised("INTERACTIVE_VERSION")),
    "INTERACTIVE_VERSION (interactive)": Row(
        raised("INTERACTIVE_VERSION"), prompts(*BASE), first=INTERACTIVE, equal=True
    ),
    "SAM_VERSION": Row(
        raised("SAM_VERSION"), {f"sam_cache[{split}]": SETS * COUNTS[split] for split in BASE}, IMAGES, ANSWERS,
        equal=True,
    ),
    "MAPS_VERSION": Row(
        raised("MAPS_VERSION"), {f"sam_cache[{split}]": SETS * COUNTS[split] for split in BASE}, equal=True
    ),
    "INDEX_VERSION": Row(raised("INDEX_VERSION")),  # all rows are compared at every look
    "MASKS_VERSION": Row(raised("MASKS_VERSION"), PACKED_ANEW),
    "PANELS_VERSION": Row(
        raised("PANELS_VERSION"), {f"sanity_panels[{split}]": COUNTS[split] for split in BASE}
    ),
    "HEAD_VERSION": Row(raised("HEAD_VERSION"), SAME_WEIGHTS),
    "POSTERIOR_VERSION": Row(raised("POSTERIOR_VERSION"), FITTED),
    "CHAMPION_VERSION": Row(raised("CHAMPION_VERSION"), {"champion": 1}, equal=True),
    "EVALUATION_VERSION": Row(raised("EVALUATION_VERSION"), {"evaluation[test]": 1}, equal=True),
    "SCORES_VERSION": Row(raised("SCORES_VERSION"), {"prompt_scores[test]": 1}, equal=True),
    "SWEEP_VERSION": Row(
        raised("SWEEP_VERSION"), {"posterior_sweep[train]": 1}, asked=("posterior_sweep",),
        first={"laplace": {"sweep": [{"approx": "full"}]}},
    ),
    "EXPERIMENT_VERSION": Row(raised("EXPERIMENT_VERSION")),
}  # fmt: skip
"""Version of an algorithm -> what raising it makes again, the algorithm being the same."""

CONTENT = {
    "pixels of an image": Row(
        other_pixels, {"all_samples": 1, "manifest[test]": 1, **features("test"), **USED}, images=1, answers=SETS,
        returns=True,
    ),
    "a mask": Row(
        other_mask, {"all_samples": 1, "manifest[test]": 1, **prompts("test")}, drawn=True,
        returns=True,
    ),
    "the time of every file": Row(touched, {"all_samples": len(OFFICIAL)}, equal=True),
}  # fmt: skip
"""What lies in the user's files."""

ROWS = {**SETTINGS, **VERSIONS, **CONTENT}
QUICK = {
    "prompt_generation.num_promptsets_test", "sam.model_type", "laplace.prior_precision_grid", "champion.confidence",
    "prompting.strategy", "storage.table_format", "MAPS_VERSION", "pixels of an image",
}  # fmt: skip
"""Rows that `make test` tries."""


def plain_name(name):
    """A row's setting or constant, without the remark in brackets."""
    return name.partition(" (")[0]


def leaves(section=Settings, prefix=""):
    """All settings, as `section.key`."""
    found = []
    for name, one in section.model_fields.items():
        if isinstance(one.annotation, type) and issubclass(one.annotation, Section):
            found += leaves(one.annotation, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found


def version_constants():
    """Names of all versions of algorithms."""
    found = set()
    for package in (sam_laplace_assets.domain, sam_laplace_assets.assets):
        for one in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{one.name}")
            found |= {name for name in vars(module) if name.endswith("_VERSION") and name.isupper()}
    return found


def inputs_of(project):
    """Settings and the user's files, to be put back."""
    kept = [path for path in project.folder.rglob("*") if path.is_file() and not _is_made(path, project)]
    return {path: path.read_bytes() for path in kept}


def put_back(inputs):
    """Have settings and the user's files as they were."""
    for path, content in inputs.items():
        if path.read_bytes() != content:
            path.write_bytes(content)


def _is_made(path, project):
    return path.relative_to(project.folder).parts[0] in ("project", "dagster_home")


def with_setting(project, name, value):
    """The text of a settings file with another value, to be written in place of it."""
    section, _, key = name.partition(".")
    settings = yaml.safe_load(project.config.read_text())
    settings[section] = settings.get(section, {}) | {key: value}
    return yaml.safe_dump(settings)
