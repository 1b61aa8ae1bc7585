"""sam.cache_embeddings: other prompts without the encoder, and answers that do not depend on what was kept."""

import shutil

import numpy as np
import pytest

from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.storage.embeddings import NAME
from sam_laplace_assets_tests.small_project import SmallProject


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Five samples, most of them in train."""
    return SmallProject.new(tmp_path, classes={"discs": 5}).use(monkeypatch)


def made(project, **sam):
    """Contents of all arrays of the cache, made with these settings of `sam`."""
    project.change(sam=sam)
    project.refresh("train", assets=("all_samples", "manifest", "prompt_sets", "sam_cache"))
    folder = project.paths.sam_cache("train")
    return {str(path.relative_to(folder)): np.load(path) for path in sorted(folder.rglob("*.npy"))}


def samples(project):
    return len(list(project.paths.prompt_sets("train").glob("*.json")))


def without_encoder(monkeypatch):
    def refuse(self, images, **_):
        assert not images, "the encoder was asked"
        return []

    monkeypatch.setattr(FrozenSam, "embed_batch", refuse)


def more_prompts(project, count=4):
    project.change(prompt_generation={"num_promptsets_train": count})


def test_nothing_is_kept_unless_asked_for(project):
    assert made(project)
    assert not list(project.paths.sam_cache("train").rglob(NAME))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_more_prompts_cost_only_the_decoder_and_give_what_one_run_would_have_given(project, dtype, monkeypatch):
    made(project, cache_embeddings=dtype)
    kept = sorted(project.paths.sam_cache("train").rglob(NAME))
    assert len(kept) == samples(project)
    more_prompts(project)
    with monkeypatch.context() as patch:
        without_encoder(patch)
        grown = made(project)
    for path in project.paths.sam_cache("train").iterdir():
        shutil.rmtree(path)
    at_once = made(project)
    assert len(grown) == samples(project) * 4 * 3
    assert grown.keys() == at_once.keys()
    for name, array in grown.items():
        np.testing.assert_allclose(array.astype(np.float32), at_once[name].astype(np.float32), atol=0.02)


def test_float32_embeddings_change_nothing_and_float16_ones_are_told_apart(project):
    plain = made(project)
    times = {path: path.stat().st_mtime_ns for path in project.paths.sam_cache("train").rglob("*.npy")}
    made(project, cache_embeddings="float32")
    assert times == {path: path.stat().st_mtime_ns for path in times}  # logits are the same, so they stay
    rounded = made(project, cache_embeddings="float16")
    logits = [name for name in rounded if name.endswith("logits_256.npy")]
    assert all(times[project.paths.sam_cache("train") / name] !=
               (project.paths.sam_cache("train") / name).stat().st_mtime_ns for name in logits)  # fmt: skip
    differences = [np.abs(rounded[name].astype(np.float32) - plain[name].astype(np.float32)).max() for name in logits]
    assert 0 < max(differences) < 0.5


def test_a_damaged_embedding_is_made_again(project):
    made(project, cache_embeddings="float32")
    for path in project.paths.sam_cache("train").rglob(NAME):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    more_prompts(project)
    assert len(made(project)) == samples(project) * 4 * 3


def test_an_embedding_of_another_precision_or_checkpoint_is_not_used(project, monkeypatch):
    made(project, cache_embeddings="float32")
    asked = []
    embed = FrozenSam.embed_batch

    def embed_counted(self, images, **more):
        asked.extend(images)
        return embed(self, images, **more)

    monkeypatch.setattr(FrozenSam, "embed_batch", embed_counted)
    made(project, precision="bf16")
    assert len(asked) == samples(project)
