"""The order of work that a GPU gets, here on the CPU: a batch is begun before the one before it is stored."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch

from sam_laplace_assets.assets import sam_answers
from sam_laplace_assets.assets.sam import sam_cache_elsewhere
from sam_laplace_assets.assets.sam_answers import SamWork, UnderWay
from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage.embeddings import NAME
from sam_laplace_assets_tests.small_project import SmallProject, count_calls

BEFORE = ("all_samples", "manifest", "prompt_sets")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Six samples, most of them in train, two in a batch."""
    project = SmallProject.new(tmp_path, classes={"discs": 6}).use(monkeypatch)
    project.change(sam={"images_per_batch": 2})
    project.refresh("train", assets=BEFORE)
    return project


@pytest.fixture
def begun_ahead(monkeypatch):
    """As on a GPU; what is begun and what is finished, in order."""
    order, begin, finish = [], SamWork._begin, UnderWay.finish

    def begun(self, batch):
        order.append("begin")
        return begin(self, batch)

    def finished(self):
        order.append("finish")
        return finish(self)

    monkeypatch.setattr(SamWork, "_begin", begun)
    monkeypatch.setattr(UnderWay, "finish", finished)
    monkeypatch.setattr(SamWork, "_on_gpu", True)
    return order


def cached(project):
    """Path below the cache -> array, or what meta.json says beside the SHA-256."""
    folder = project.paths.sam_cache("train")
    arrays = {str(path.relative_to(folder)): np.load(path) for path in sorted(folder.rglob("*.npy"))}
    metas = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("meta.json")}
    return arrays, {name: {**meta, "sha256": None, "check": None} for name, meta in metas.items()}


def test_the_cache_is_the_same(project, begun_ahead, monkeypatch):
    project.refresh("train", assets=("sam_cache",))
    assert begun_ahead[:4] == ["begin", "begin", "finish", "begin"]
    assert begun_ahead.count("begin") == begun_ahead.count("finish")
    arrays, metas = cached(project)
    monkeypatch.setattr(SamWork, "_on_gpu", False)
    project.materialise("sam_cache", split="train", force=True)
    others, others_metas = cached(project)
    assert metas == others_metas
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        last_bit = 0 if name.endswith("logits_256.npy") else 2**-11  # maps are rounded elsewhere
        np.testing.assert_allclose(array.astype(float), others[name].astype(float), rtol=0, atol=last_bit, err_msg=name)


def test_what_is_missing_is_made_and_embeddings_are_kept(project, begun_ahead, monkeypatch):
    """Whole samples, logits alone, maps alone: each kind beside the others in its batches."""
    project.change(sam={"images_per_batch": 2, "cache_embeddings": "float32"})
    project.refresh("train", assets=("sam_cache",))
    before, _ = cached(project)
    folders = sorted(project.paths.sam_cache("train").iterdir())
    assert all((folder / NAME).exists() for folder in folders)
    shutil.rmtree(folders[0])
    (folders[1] / "promptset_0000" / "logits_256.npy").unlink()
    (folders[2] / "promptset_0001" / "pos_map.npy").unlink()
    encoded = count_calls(monkeypatch, FrozenSam, "prepare")
    project.refresh("train", assets=("sam_cache",))
    assert encoded["prepare"] == 1
    after, _ = cached(project)
    assert after.keys() == before.keys()
    for name, array in after.items():
        np.testing.assert_allclose(array.astype(float), before[name].astype(float), atol=0.02, err_msg=name)


def test_an_image_that_is_refused_fails_alone_whether_asking_or_waiting_finds_out(project, begun_ahead, monkeypatch):
    project.change(data={"max_failed_fraction": 0.9})
    keys = sorted(path.stem for path in project.paths.prompt_sets("train").glob("*.json"))
    refuse(monkeypatch, SamWork, "_begin", lambda work, batch: batch, keys[0])
    refuse(monkeypatch, UnderWay, "finish", lambda under_way: under_way.batch, keys[-1])
    assert project.materialise("sam_cache", split="train").success
    assert project.metadata("sam_cache", "train")["prompt sets failed"] == 2
    assert {path.name for path in project.paths.sam_cache("train").iterdir()} == set(keys[1:-1])


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("ends", ["by itself", "early", "by an error"])
def test_pytorch_has_its_threads_again_here_and_in_threads_to_come(project, three_threads, monkeypatch, ends):
    plan, seen = plan_of_the_cache(), []
    make_output = sam_answers.output
    monkeypatch.setattr(
        sam_answers, "output", lambda *given: seen.append(threads_of_a_new_one()) or make_output(*given)
    )
    making = plan.carry_out([(item, frozenset(item.parts)) for item in plan.items])
    if ends == "by itself":
        assert len(list(making)) == len(plan.items) > 1
    elif ends == "early":
        next(making)
        making.close()
    else:
        monkeypatch.setattr(FrozenSam, "ask_many", lambda *given, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(making)
    assert set(seen) <= {1}, "threads that read for SAM were to have no helpers"
    assert torch.get_num_threads() == threads_of_a_new_one() == 3


def plan_of_the_cache():
    """The plan of the training split's cache."""
    plan, _ = sam_cache_elsewhere(load_settings(), "train")
    return plan


def threads_of_a_new_one():
    """How many threads PyTorch would compute with in a thread that begins now."""
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def refuse(monkeypatch, owner, name, batch_of, key):
    """Have a method refuse each batch with one sample in it."""
    function = getattr(owner, name)

    def refused(*arguments):
        if any(one.task[0].key == key for one in batch_of(*arguments)):
            raise ValueError(f"{key} is refused")
        return function(*arguments)

    monkeypatch.setattr(owner, name, refused)
