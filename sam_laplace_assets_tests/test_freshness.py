"""What is stale is exactly what depends on a change: no more, no less."""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from sam_laplace_assets.assets.graph import BY_NAME
from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.freshness import look
from sam_laplace_assets.stages import stages
from sam_laplace_assets_tests.small_project import BASE, add_sample, count_calls, draw, hashes

AFTER_CACHE = ["training_index", "hdf5_pack", "sanity_panels"]
FITTED = ["head_checkpoint[train]", "laplace_posterior[train]", "champion"]
USED = ["evaluation[test]", "prompt_scores[test]"]


def looked_at(project):
    """Freshness of every asset partition of the base splits."""
    with project.instance() as instance:
        return [
            look(BY_NAME[name], stage.partition, project.settings, instance)
            for stage in stages(BASE)
            for name in stage.assets
        ]


def stale(project):
    return [one.name for one in looked_at(project) if not one.current]


def of(split, *assets):
    return [f"{asset}[{split}]" for asset in assets]


def samples_of(project, split):
    return sorted(path.stem.replace("__", "/") for path in (project.root / "prompt_sets" / split).glob("*.json"))


def image_of(project, sample_id):
    return next((project.folder / "images").glob(f"{sample_id}.*"))


def mask_of(project, sample_id):
    return next((project.folder / "masks").glob(f"{sample_id}.*"))


def put_mask(path, mask):
    if path.suffix == ".npy":
        np.save(path, mask)
    else:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path)


@pytest.fixture
def encoded(monkeypatch):
    """How often the encoder was called."""
    return count_calls(monkeypatch, FrozenSam, "prepare")


@pytest.fixture
def answered(monkeypatch):
    """How often the decoder was asked."""
    return count_calls(monkeypatch, FrozenSam, "ask_many")


def test_everything_that_was_made_is_current(read_only):
    looks = looked_at(read_only)
    assert [(one.name, one.why) for one in looks if not one.current] == []
    assert all(one.wanted > 0 and one.lacking == 0 for one in looks)


def test_a_second_refresh_launches_no_step_and_changes_no_byte(read_only, encoded):
    before = hashes(read_only.root)
    assert read_only.refresh() == []
    assert hashes(read_only.root) == before
    assert not encoded


def test_what_is_current_is_not_made_again_by_a_run_either(project, encoded):
    before, versions = hashes(project.root), project.versions()
    assert project.materialise("sam_cache", "training_index", "hdf5_pack", split="train").success
    assert project.materialise("head_checkpoint", "laplace_posterior", split="train").success
    assert project.materialise("champion").success
    assert not encoded
    assert project.versions() == versions
    changed = {name for name, sha in hashes(project.root).items() if before.get(name) != sha}
    assert changed <= {"sam_precompute/checkpoints.json", "sam_precompute/train.ledger.parquet"}


def test_what_was_never_made_is_stale(new_project):
    assert stale(new_project)[:2] == ["all_samples", "manifest[train]"]
    whys = {one.name: one.why for one in looked_at(new_project)}
    assert whys["all_samples"] == "16 files missing"
    assert whys["hdf5_pack[train]"].startswith("waits: ")
    assert "Materialise" in whys["champion"]


def test_touching_files_changes_nothing(project, encoded):
    versions, before = project.versions(), hashes(project.root)
    for path in [*(project.folder / "images").rglob("*.*"), *(project.folder / "masks").rglob("*.*")]:
        os.utime(path)
    os.utime(project.folder / "sam.pt")
    project.root.joinpath("training_data/no_image/train.h5").touch()
    for path in (project.root / "sam_precompute" / "train").rglob("*.npy"):
        os.utime(path)
    assert project.refresh() == ["all_samples"]
    assert project.versions() == versions
    changed = {name for name, sha in hashes(project.root).items() if before.get(name) != sha}
    assert all("ledger" in name or name == "sam_precompute/checkpoints.json" for name in changed)
    assert not encoded
    assert project.refresh() == []


def test_another_file_that_is_no_sample_changes_no_split(project, encoded):
    (project.folder / "images" / "boxes" / "notes.txt").write_text("hello")
    assert project.refresh() == ["all_samples"]
    assert project.metadata("all_samples")["invalid"] == 1
    assert not encoded


def test_a_changed_mask_makes_its_prompts_again_and_what_follows(project, encoded):
    sample = samples_of(project, "test")[0]
    path, disc = mask_of(project, sample), "discs" in sample
    _, mask = draw(900, size=project_size(project, sample), disc=disc)
    put_mask(path, mask)
    ran = project.refresh()
    assert ran == ["all_samples", *of("test", "manifest", "prompt_sets", "sam_cache", *AFTER_CACHE), *USED]
    assert encoded["prepare"] == 1
    assert project.metadata("prompt_sets", "test")["samples made"] == 1
    assert project.metadata("prompt_sets", "test")["samples reused"] == 1
    assert project.metadata("sam_cache", "test")["prompt sets reused"] == 2


def project_size(project, sample):
    with Image.open(image_of(project, sample)) as image:
        return image.height, image.width


def test_changed_pixels_make_the_logits_again_and_not_the_prompts(project, encoded):
    sample = samples_of(project, "test")[1]
    path = image_of(project, sample)
    image = np.array(Image.open(path))
    Image.fromarray(255 - image).save(path)
    versions = project.versions()
    ran = project.refresh()
    assert ran == ["all_samples", *of("test", "manifest", "prompt_sets", "sam_cache", *AFTER_CACHE), *USED]
    assert project.metadata("prompt_sets", "test")["samples made"] == 0
    assert encoded["prepare"] == 1
    changed = {name for name, version in project.versions().items() if versions[name] != version}
    changed_in_test = ("manifest", "sam_cache", *AFTER_CACHE, "evaluation", "prompt_scores")
    assert changed == {("all_samples", None), *((name, "test") for name in changed_in_test)}


def test_the_same_pixels_in_another_file_change_nothing(project, encoded):
    path = next((project.folder / "images").rglob("*.png"))
    image = Image.open(path).copy()
    image.save(path, compress_level=0)
    versions = project.versions()
    assert project.refresh() == ["all_samples"]
    assert project.versions() == versions
    assert not encoded


def test_another_sigma_makes_the_maps_again_and_never_calls_the_encoder(project, encoded, answered):
    logits = {name: sha for name, sha in hashes(project.root).items() if name.endswith("logits_256.npy")}
    project.change(prompt_generation={"gaussian_sigma": 5})
    ran = project.refresh()
    made = [name for split in BASE for name in of(split, "sam_cache", *AFTER_CACHE)]
    assert ran == [*made, "validation_pack", *FITTED, *USED]
    assert not encoded
    assert not answered
    after = hashes(project.root)
    assert {name: after[name] for name in logits} == logits
    assert project.metadata("sam_cache", "train")["prompt sets made"] == 24


def test_one_more_prompt_set_asks_for_that_one_alone(project, answered, encoded):
    project.change(prompt_generation={"num_promptsets_test": 3})
    before = hashes(project.root / "sam_precompute" / "test")
    ran = project.refresh()
    assert ran == of("test", "prompt_sets", "sam_cache", *AFTER_CACHE) + USED
    assert encoded["prepare"] == answered["ask_many"] == 2
    assert project.metadata("sam_cache", "test")["prompt sets made"] == 2
    after = hashes(project.root / "sam_precompute" / "test")
    assert {name: after[name] for name in before} == before


def test_fewer_prompt_sets_ask_for_none(project, encoded):
    project.change(prompt_generation={"num_promptsets_test": 1})
    assert project.refresh() == of("test", "prompt_sets", "sam_cache", *AFTER_CACHE) + USED
    assert not encoded
    assert project.metadata("training_index", "test")["rows"] == 2


def test_another_prompt_seed_draws_all_prompts_anew(project, encoded):
    project.change(prompt_generation={"prompt_seed": 1})
    assert project.refresh("test") == of("test", "prompt_sets", "sam_cache", *AFTER_CACHE) + USED
    assert encoded["prepare"] == 2


def test_another_checkpoint_makes_the_logits_again_and_not_the_maps(project, encoded):
    weights = torch.load(project.folder / "sam.pt", weights_only=True)
    weights["mask_decoder.iou_token.weight"] += 0.5
    torch.save(weights, project.folder / "sam.pt")
    before = hashes(project.root / "sam_precompute" / "test")
    assert project.refresh("test") == of("test", "sam_cache", *AFTER_CACHE) + USED
    assert encoded["prepare"] == 2
    after = hashes(project.root / "sam_precompute" / "test")
    changed = {name.rpartition("/")[2] for name, sha in after.items() if before[name] != sha}
    assert changed == {"logits_256.npy", "meta.json"}


def test_a_checkpoint_of_the_same_bytes_elsewhere_changes_nothing(project, encoded):
    (project.folder / "weights").mkdir()
    (project.folder / "sam.pt").rename(project.folder / "weights" / "toy.pth")
    project.change(sam={"checkpoint": "weights/toy.pth"})
    assert project.refresh() == []
    assert not encoded


def test_checkpoints_of_one_name_size_and_time_are_told_apart(project):
    (project.folder / "other").mkdir()
    weights = torch.load(project.folder / "sam.pt", weights_only=True)
    weights["mask_decoder.iou_token.weight"] += 0.5
    torch.save(weights, project.folder / "sam.pt")
    weights["mask_decoder.iou_token.weight"] += 0.5
    torch.save(weights, project.folder / "other" / "sam.pt")
    for path in (project.folder / "sam.pt", project.folder / "other" / "sam.pt"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    project.refresh("test")
    project.change(sam={"checkpoint": "other/sam.pt"})
    assert project.refresh("test") == of("test", "sam_cache", *AFTER_CACHE) + USED


def test_another_training_setting_trains_again_under_another_name(project):
    project.change(training={"lr": 0.02})
    runs = set((project.root / "checkpoints" / "no_image").glob("run_*"))
    assert project.refresh() == FITTED + USED
    assert len(set((project.root / "checkpoints" / "no_image").glob("run_*")) - runs) == 1
    project.change(training={"num_workers": 3, "memory_budget": 1.0})
    assert project.refresh() == []


def test_going_back_to_a_finished_run_trains_nothing(project):
    head, posterior = project.version("head_checkpoint", "train"), project.version("laplace_posterior", "train")
    project.change(training={"lr": 0.02})
    project.refresh()
    project.change(training={"lr": 0.01})
    before = time.monotonic()
    assert project.refresh() == FITTED
    assert time.monotonic() - before < 10
    assert project.metadata("head_checkpoint", "train")["epochs made"] == 0
    assert project.version("head_checkpoint", "train") == head
    assert project.version("laplace_posterior", "train") == posterior


def test_another_prior_grid_fits_again_and_does_not_train(project):
    project.change(laplace={"prior_precision_grid": [0.1, 10.0, 1e6]})
    assert project.refresh() == FITTED[1:] + USED


def test_a_rule_for_the_title_asks_for_a_decision_only(project):
    project.change(champion={"confidence": 0.9})
    assert project.refresh() == FITTED[2:]


def test_an_array_that_was_lost_is_made_again(project, encoded):
    versions = project.versions()
    lost = next((project.root / "sam_precompute" / "test").rglob("logits_256.npy"))
    lost.unlink()
    assert stale(project)[0] == "sam_cache[test]"
    project.refresh()
    assert lost.exists()
    assert encoded["prepare"] == 1
    assert project.versions() == versions


def test_ledgers_that_were_lost_are_built_from_the_items(project, encoded):
    versions = project.versions()
    for path in (project.root / "sam_precompute", project.root / "prompt_sets"):
        for ledger in path.glob("*.ledger.parquet"):
            ledger.unlink()
    project.refresh()
    assert not encoded
    assert project.versions() == versions
    assert project.refresh() == []


def test_an_instance_without_records_is_told_without_making_anything_again(project, encoded, tmp_path, monkeypatch):
    before, versions = hashes(project.root), project.versions()
    for path in (project.folder / "dagster_home").iterdir():
        path.rename(tmp_path / f"old_{path.name}")
    assert all(one.why == "Dagster has no record of it" for one in looked_at(project))
    assert len(project.refresh()) == 25
    assert project.versions() == versions
    assert not encoded
    changed = {name for name, sha in hashes(project.root).items() if before.get(name) != sha}
    assert all("ledger" in name or name == "sam_precompute/checkpoints.json" for name in changed)


def test_looking_at_a_folder_that_is_not_there_says_what_is_missing(project):
    (project.folder / "images").rename(project.folder / "moved")
    whys = {one.name: one.why for one in looked_at(project)}
    assert whys["all_samples"].startswith("waits: data.images_root is ")
    assert whys["champion"] == ""


def test_a_new_sample_is_the_only_one_that_is_made(project, encoded):
    shards = set((project.root / "training_data" / "no_image" / "train_shards").glob("*.h5"))
    add_sample(project.folder, "boxes/new", 77)
    ran = project.refresh()
    assert ran == ["all_samples", *of("train", "manifest", "prompt_sets", "sam_cache", *AFTER_CACHE), *FITTED, *USED]
    assert encoded["prepare"] == 1
    added = set((project.root / "training_data" / "no_image" / "train_shards").glob("*.h5")) - shards
    assert len(added) == 1
    assert project.metadata("hdf5_pack", "train")["samples made"] == 1
    assert project.metadata("hdf5_pack", "train")["samples reused"] == 12
