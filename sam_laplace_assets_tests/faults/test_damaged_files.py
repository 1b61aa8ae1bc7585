"""Damaged files of the prepared data: found before they reach training, and made again as they were."""

from collections import Counter

import pytest

from sam_laplace_assets.checks import arrays_are_finite_and_in_range
from sam_laplace_assets_tests.checks.looking import look, words
from sam_laplace_assets_tests.faults import damages
from sam_laplace_assets_tests.faults.damages import (
    HARMLESS,
    MADE_AGAIN,
    PUT_BACK,
    REFUSED,
    UNNOTICED,
    Kind,
    Patient,
    became_of,
    became_of_a_flip,
    flip,
    in_words,
)
from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.small_project import draw_plainly, failure

FLIPS = 20
KINDS = (
    Kind("table of all samples", "manifests/all_samples.parquet", "all_samples", None, damages.rows_of_all,
         other="manifests/val.parquet"),
    Kind("ledger of all samples", "manifests/all_samples.ledger.parquet", "all_samples", None, damages.rows_of_all,
         other="manifests/val.ledger.parquet"),
    Kind("splits that were drawn", "manifests/assignments.parquet", "all_samples", None, damages.assigned,
         remedy=PUT_BACK),
    Kind("manifest", "manifests/train.parquet", "manifest", "train", damages.rows_of_manifest,
         other="manifests/val.parquet"),
    Kind("ledger of a manifest", "manifests/train.ledger.parquet", "manifest", "train", damages.rows_of_manifest,
         other="manifests/val.ledger.parquet"),
    Kind("prompt sets", "prompt_sets/train/*.json", "prompt_sets", "train", damages.prompts,
         other="prompt_sets/train/*.json"),
    Kind("ledger of prompt sets", "prompt_sets/train.ledger.parquet", "prompt_sets", "train", damages.prompts,
         other="prompt_sets/val.ledger.parquet"),
    Kind("logits", "sam_precompute/train/*/*/logits_256.npy", "sam_cache", "train", damages.cache,
         other="sam_precompute/train/*/*/logits_256.npy"),
    Kind("map of points", "sam_precompute/train/*/*/pos_map.npy", "sam_cache", "train", damages.cache,
         other="sam_precompute/train/*/*/pos_map.npy"),
    Kind("meta.json of a prompt set", "sam_precompute/train/*/*/meta.json", "sam_cache", "train", damages.cache,
         other="sam_precompute/train/*/*/meta.json"),
    Kind("ledger of the cache", "sam_precompute/train.ledger.parquet", "sam_cache", "train", damages.cache,
         other="sam_precompute/val.ledger.parquet"),
    Kind("training index", "training_data/no_image/train_index.parquet", "training_index", "train", damages.index,
         other="training_data/no_image/val_index.parquet"),
    Kind("shard of a pack", "training_data/no_image/train_shards/*.h5", "hdf5_pack", "train", damages.pack,
         other="training_data/no_image/val_shards/*.h5"),
    Kind("pack", "training_data/no_image/train.h5", "hdf5_pack", "train", damages.pack,
         other="training_data/no_image/val.h5"),
    Kind("name of the validation pack", "training_data/no_image/validation_pack.json", "validation_pack", None,
         damages.validation),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}


@pytest.fixture(scope="module")
def patient(made_project, tmp_path_factory):
    project = made_project.copy(tmp_path_factory.mktemp("patient"))
    return Patient(project, made_project)


@pytest.fixture(scope="module")
def values(made_project):
    """What each reader sees of the sound project."""
    with pytest.MonkeyPatch.context() as patch:
        made_project.use(patch)
        return {kind.name: kind.read(made_project) for kind in KINDS}


@pytest.fixture
def damaged(patient, monkeypatch):
    """The project, brought back to what it was after the test."""
    draw_plainly(monkeypatch)
    patient.project.use(monkeypatch)
    yield patient
    patient.restore()


def harms_of(kind, root):
    """Every damage that can be done to a file of this kind."""
    harms = {"half": damages.half, "empty": damages.empty, "missing": damages.missing}
    if kind.other:
        harms["foreign"] = lambda kind, path: damages.foreign(kind, path, root)
    return harms | ({"nan": damages.nan} if kind.pattern.endswith(".npy") else {})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_that_is_cut_is_found_and_made_again_as_it_was(damaged, values, kind):
    damages.half(kind, damaged.place(kind))
    why = damaged.fresh(kind)
    told = why.removeprefix("waits: ") if why.startswith("waits") else ""
    if not told:
        assert why
        result = damaged.project.materialise(kind.asset, split=kind.split)
        told = "" if result.success else failure(result)
    if told:
        assert damages.names_it(kind, damaged, told)
        damages.do_as_told(damaged, kind)
        assert damaged.project.materialise(kind.asset, split=kind.split).success
    assert damaged.read(kind) == (values[kind.name], "")
    assert damaged.project.version(kind.asset, kind.split) == damaged.sound.version(kind.asset, kind.split)
    assert not damaged.fresh(kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_flipped_bit_never_changes_what_a_reader_sees(damaged, values, kind):
    for seed in range(2):
        flip(damaged.place(kind), seed)
        found = became_of_a_flip(damaged, kind, values[kind.name])
        damaged.restore_file(kind)
        assert found in (MADE_AGAIN, REFUSED, HARMLESS)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_whatever_is_done_to_a_file_it_is_found_and_made_again_as_it_was(damaged, values, kind):
    found = {}
    for name, harm in harms_of(kind, damaged.sound.root).items():
        harm(kind, damaged.place(kind))
        found[name] = became_of(damaged, kind, values[kind.name])
        damaged.restore()
    for seed in range(FLIPS):
        flip(damaged.place(kind), seed)
        found[f"flip {seed}"] = became_of_a_flip(damaged, kind, values[kind.name])
        damaged.restore_file(kind)
    noticed = [one for one in found.values() if one in (MADE_AGAIN, REFUSED, HARMLESS)]
    keep(f"damaged: {kind.name}", group="damaged files", tried=len(found), survived=len(noticed),
         gets=in_words(Counter(found.values())))  # fmt: skip
    assert len(noticed) == len(found), {name: one for name, one in found.items() if one.startswith(UNNOTICED)}


def test_a_value_that_is_no_number_in_a_shard_that_is_whole_is_told_by_the_checks(damaged):
    kind = BY_NAME["shard of a pack"]
    damages.nan(kind, damaged.place(kind))
    found = look(arrays_are_finite_and_in_range, "train")
    assert not found.passed
    assert "logits_256" in words(found)


def test_a_head_is_not_trained_on_a_shard_of_other_samples_of_the_same_size(damaged):
    kind = BY_NAME["shard of a pack"]
    place, other = damaged.place(kind), kind.foreign(damaged.sound.root)
    size = place.stat().st_size
    content = other.read_bytes()
    if len(content) > size:
        pytest.skip("the other shard is larger than this one")
    place.write_bytes(content.ljust(size, b"\0"))
    damaged.project.change(training={"seed": 7})
    result = damaged.project.materialise("head_checkpoint", split="train")
    assert not result.success
    assert damages.names_it(kind, damaged, failure(result)), failure(result)
