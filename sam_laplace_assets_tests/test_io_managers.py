"""How a run fails, and what it leaves; what every materialisation shows."""

import json
import pickle
import shutil
import threading

import dagster as dg
import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.headless import RunFailed
from sam_laplace_assets.storage.lease import Lease
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets_tests.small_project import BASE, SPLIT_ASSETS, add_sample, count_calls, failure, hashes

CHAIN = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels")


@pytest.mark.parametrize(
    ("first", "key"),
    [("manifest", "../x"), ("manifest", "trian"), ("manifest", "test-nowhere"), ("prompt_sets", "../x"),
     ("sam_cache", "trian"), ("hdf5_pack", "test-nowhere")],
)  # fmt: skip
def test_a_key_without_data_fails_naming_the_known_splits_and_writes_nothing(project, first, key):
    before = hashes(project.folder / "project")
    above = sorted(project.folder.iterdir())
    result = project.materialise(first, split=key)
    assert not result.success
    assert failure(result).endswith("Known splits: train, val, test.")
    assert hashes(project.folder / "project") == before
    assert sorted(project.folder.iterdir()) == above


@pytest.mark.parametrize(("key", "said"), [("val", "is no training split"), ("train-nowhere", "Known splits: train")])
def test_a_head_of_what_is_no_training_split_fails_and_writes_nothing(project, key, said):
    before = hashes(project.root)
    result = project.materialise("head_checkpoint", split=key)
    assert said in failure(result)
    assert hashes(project.root) == before


def foreign(path):
    torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, path)


def other_weights(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def truncated(path):
    path.write_bytes(path.read_bytes()[:100_000])


class Evil:
    def __reduce__(self):
        return (print, ("code of the checkpoint was run",))


def pickled(path):
    path.write_bytes(pickle.dumps({"weights": Evil()}))


def absent(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (absent, r"SAM checkpoint .*sam.pt is not there. Set sam.checkpoint"),
        (truncated, r"Cannot load .*sam.pt: it is cut short or no PyTorch file"),
        (foreign, r"Cannot load .*sam.pt: it holds a dict of model, not a state dict"),
        (other_weights, r"sam.pt does not fit model type toy"),
        (pickled, r"sam.pt"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_ends_the_run_with_its_message(project, capfd, spoil, said):
    spoil(project.folder / "sam.pt")
    before = hashes(project.root)
    with pytest.raises(RunFailed, match=said) as raised:
        project.refresh("test")
    assert str(raised.value).count("sam.pt") == 1  # once, not once a sample
    after = hashes(project.root)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        "sam_precompute/checkpoints.json"
    }
    assert "code of the checkpoint was run" not in capfd.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_a_clear_error_whatever_may_fail(new_project):
    new_project.change(sam={"device": "cuda"}, data={"max_failed_fraction": 1.0})
    with pytest.raises(
        RunFailed, match=r"device: cuda was asked for, but PyTorch sees no GPU here. Set device to auto"
    ):
        new_project.refresh("test")
    assert not (new_project.root / "sam_precompute" / "test").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_training_on_cuda_without_a_gpu_is_a_clear_error(project):
    project.change(sam={"device": "cuda"}, training={"seed": 5})
    result = project.materialise("head_checkpoint", split="train")
    assert "head_checkpoint[train] failed: device: cuda was asked for" in failure(result)
    assert len(list((project.root / "checkpoints" / "no_image").glob("run_*"))) == 1


def small_mask(project, sample_id):
    image = np.full((40, 60, 3), 90, dtype=np.uint8)
    mask = np.zeros((40, 60), dtype=bool)
    mask[10, 10:12] = True
    image[mask] = 200
    return add_sample(project.folder / "splits" / "test-caves", sample_id, 1, image=image, mask=mask)


def test_a_failed_sample_is_listed_with_its_reason_and_the_others_are_stored(project):
    for number in range(3):
        add_sample(project.folder / "splits" / "test-caves", f"caves/{number}", 300 + number)
    small_mask(project, "caves/tiny")
    with pytest.raises(RunFailed) as raised:
        project.refresh("test-caves")
    message = str(raised.value)
    assert "1 of 4 items failed, more than data.max_failed_fraction (0.0) allows; the others are stored" in message
    assert "caves__tiny: Cannot draw 3 points on the object of caves/tiny: its mask has 2 such pixels" in message
    stored = sorted(path.stem for path in (project.root / "prompt_sets" / "test-caves").glob("*.json"))
    assert stored == ["caves__0", "caves__1", "caves__2"]


def test_failed_samples_within_the_allowed_fraction_are_shown_and_left_out(project):
    for number in range(3):
        add_sample(project.folder / "splits" / "test-caves", f"caves/{number}", 300 + number)
    small_mask(project, "caves/tiny")
    project.change(data={"max_failed_fraction": 0.25})
    project.refresh("test-caves")
    shown = project.metadata("prompt_sets", "test-caves")
    assert shown["samples failed"] == 1
    assert "its mask has 2 such pixels" in shown["failed items"]
    assert "it has no prompt sets" in project.metadata("sam_cache", "test-caves")["failed items"]
    pack = Pack.open(project.paths.pack("test-caves"))
    assert (len(pack), pack.complete) == (6, True)
    assert project.refresh("test-caves") == []
    add_sample(project.folder / "splits" / "test-caves", "caves/3", 303)
    assert "prompt_sets[test-caves]" in project.refresh("test-caves")
    assert project.refresh("test-caves") == []
    path = project.folder / "splits" / "test-caves" / "masks" / "caves" / "tiny.npy"
    mask = np.load(path)
    mask[20:25, 20:25] = True
    np.save(path, mask)
    project.refresh("test-caves")
    assert project.metadata("sam_cache", "test-caves")["prompt sets"] == 10


def test_a_trial_is_incomplete_and_training_refuses_it_until_a_full_run_is_asked_for(project):
    project.change(prompt_generation={"prompt_seed": 4})
    assert project.materialise("prompt_sets", split="train", limit=3).success
    for asset in ("sam_cache", "training_index", "hdf5_pack"):
        result = project.materialise(asset, split="train")
        assert result.success, failure(result)
        assert next(iter(project.metadata(asset, "train"))) == "incomplete"
    assert len(Pack.open(project.paths.pack("train")).safe_ids) == 3
    result = project.materialise("head_checkpoint", split="train")
    assert "train.h5 is a trial (`limit`)" in failure(result)
    assert "Materialise train without `limit`" in failure(result)
    assert project.refresh("train", assets=CHAIN) == ["sanity_panels[train]"]
    project.refresh("train", assets=CHAIN, keep_overrides=False)
    assert project.metadata("sam_cache", "train")["prompt sets reused"] == 6
    assert Pack.open(project.paths.pack("train")).complete
    assert project.refresh("train", assets=CHAIN) == []


def test_a_trial_of_the_cache_asks_sam_for_these_samples_only(new_project, monkeypatch):
    new_project.refresh("train", assets=["all_samples", "manifest", "prompt_sets"])
    encoded = count_calls(monkeypatch, FrozenSam, "prepare")
    assert new_project.materialise("sam_cache", split="train", limit=2).success
    assert encoded["prepare"] == 2
    name, told = next(iter(new_project.metadata("sam_cache", "train").items()))
    assert (name, told.partition(".")[0]) == ("trial", "The first 2 samples only")


def test_a_validation_pack_is_never_a_trial(project):
    project.change(prompt_generation={"prompt_seed": 4})
    assert project.materialise("prompt_sets", "sam_cache", "training_index", "hdf5_pack", split="val", limit=1).success
    assert "it cannot judge" in failure(project.materialise("validation_pack"))


def test_force_makes_everything_again_and_changes_no_version(project, monkeypatch):
    encoded = count_calls(monkeypatch, FrozenSam, "prepare")
    versions = project.versions()
    for asset in CHAIN:
        result = project.materialise(asset, split="test", force=True)
        assert result.success, failure(result)
    assert encoded["prepare"] == 2
    assert project.versions() == versions


def test_a_launchpad_value_of_zero_counts(project):
    project.materialise("prompt_sets", split="test", prompt_seed=0)
    (path, *_) = (project.root / "prompt_sets" / "test").glob("*.json")
    assert json.loads(path.read_text())["provenance"]["prompt_seed"] == 0


def test_a_launchpad_value_that_cannot_be_is_named(project):
    result = project.materialise("prompt_sets", split="test", min_pairs=9)
    assert not result.success
    assert "The launchpad's fields are not valid" in failure(result)
    assert "min_pairs is 9, above max_pairs 3" in failure(result)


def test_an_asset_before_what_it_reads_says_what_to_materialise(new_project):
    result = new_project.materialise("sam_cache", split="train")
    assert "Materialise manifest[train] first" in failure(result)
    assert "Materialise" in failure(new_project.materialise("validation_pack"))
    assert not new_project.root.exists() or not any(new_project.root.rglob("*.npy"))


@pytest.mark.parametrize("split", BASE)
@pytest.mark.parametrize("asset", SPLIT_ASSETS)
def test_every_materialisation_of_a_split_shows_counts_and_time_after_its_results(read_only, asset, split):
    shown = read_only.metadata(asset, split)
    (made,) = [name for name in shown if name.endswith(" made")]
    unit = made.removesuffix(" made")
    assert shown[made] > 0
    assert list(shown)[-4:] == [made, f"{unit} reused", "seconds", f"{unit} per second"]
    assert not {"trial", "incomplete", f"{unit} failed", "failed items"} & shown.keys()


TABLES = {
    "all_samples": "by class", "manifest": "by class", "prompt_sets": "prompt sets by class",
    "sam_cache": "chosen branches", "training_index": "first rows", "head_checkpoint": "history",
    "laplace_posterior": "prior grid", "champion": "candidates",
}  # fmt: skip


@pytest.mark.parametrize("asset", TABLES)
def test_a_table_is_previewed(read_only, asset):
    node = None if asset in ("all_samples", "champion") else "train"
    lines = read_only.metadata(asset, node)[TABLES[asset]].splitlines()
    assert lines[1].startswith("| --- |")
    assert len(lines) >= 3


def test_no_fact_is_hidden_by_a_table_or_picture_of_its_name(read_only):
    assert read_only.metadata("head_checkpoint", "train")["epochs made"] == 2
    assert read_only.metadata("laplace_posterior", "train")["prior precision"] in (0.01, 1.0, 100.0)
    assert read_only.metadata("sanity_panels", "train")["panels made"] == 8
    assert read_only.metadata("sanity_panels", "train")["folder"] == str(read_only.paths.panels("train"))


@pytest.mark.parametrize(
    ("asset", "picture"),
    [("sanity_panels", "panels"), ("head_checkpoint", "curves"), ("laplace_posterior", "prior search")],
)
def test_a_picture_is_shown_where_it_says_more(read_only, asset, picture):
    import base64
    import io

    from PIL import Image

    markdown = read_only.metadata(asset, "train")[picture]
    assert markdown.startswith(f"![{picture}](data:image/png;base64,")
    content = base64.b64decode(markdown.partition("base64,")[2].rstrip(")"))
    with Image.open(io.BytesIO(content)) as shown:
        assert shown.format == "PNG"
        assert min(shown.size) > 100


def test_no_mlflow_link_is_shown_where_nothing_is_tracked(read_only):
    assert "MLflow run" not in read_only.metadata("champion")


def test_a_settings_warning_is_logged_by_the_run(project):
    project.change(wandb={"enabled": False})
    result = project.materialise("champion")
    assert result.success
    with project.instance() as instance:
        logs = [record.user_message for record in instance.all_logs(result.run_id)]
    assert any("read as `mlflow`" in message for message in logs)


def test_long_work_tells_rate_and_time_left(project):
    result = project.materialise("sam_cache", split="train", force=True)
    with project.instance() as instance:
        logs = [record.user_message for record in instance.all_logs(result.run_id)]
    told = [message for message in logs if message.startswith("sam_cache[train]: 24/24 prompt sets")]
    assert "/s" in told[-1]
    assert told[-1].endswith(" s")


def test_a_project_root_can_be_moved(project):
    versions = project.versions()
    shutil.move(project.root, project.folder / "elsewhere")
    project.change(data={"project_root": "elsewhere"})
    assert project.refresh() == []
    assert project.materialise("hdf5_pack", split="test", force=True).success
    assert project.versions() == versions


def test_tables_may_be_csv_under_the_same_names(new_project):
    new_project.change(storage={"table_format": "csv"})
    new_project.refresh("test")
    for name in ("manifests/all_samples", "manifests/test", "training_data/no_image/test_index"):
        assert (new_project.root / f"{name}.csv").exists()
        assert not (new_project.root / f"{name}.parquet").exists()
    assert new_project.refresh("test") == []


def test_the_data_version_is_shown_to_dagster(read_only):
    with read_only.instance() as instance:
        record = instance.get_latest_materialization_event(dg.AssetKey("champion"))
    assert len(record.asset_materialization.tags["dagster/data_version"]) == 64


def test_a_run_waits_for_the_one_that_writes_the_partition_and_says_so(project, capfd):
    lease = Lease(project.paths.lease("prompt_sets", "val"), "run other")
    assert lease.take()
    done = threading.Timer(1.5, lease.release)
    done.start()
    assert project.materialise("prompt_sets", split="val").success
    assert done.finished.is_set()
    assert "prompt_sets[val] is being written by run other" in "".join(capfd.readouterr())
    assert not lease.path.exists()
