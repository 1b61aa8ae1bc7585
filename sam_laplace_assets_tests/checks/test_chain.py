"""What is lost between the manifest and the pack is named, with the asset that lost it."""

import numpy as np
import pytest

from sam_laplace_assets.checks import nothing_is_lost_on_the_way, pack_holds_the_rows_of_its_index
from sam_laplace_assets.checks.chain import links_of
from sam_laplace_assets.storage import sam, tables
from sam_laplace_assets.storage.index import SCHEMA, VERSION, read_index
from sam_laplace_assets.storage.ledger import Ledger
from sam_laplace_assets_tests.checks.looking import look, warns, words
from sam_laplace_assets_tests.small_project import SPLIT_ASSETS, add_sample

TO_THE_PACK = ("all_samples", *SPLIT_ASSETS[:-1])


def change_index(project, split, change):
    """Put other rows into an index that says that it is complete."""
    path = tables.path_of(project.paths.training_index(split), "parquet")
    frame, _ = read_index(project.paths.training_index(split), "parquet", split=split)
    tables.write_table(path, change(frame), SCHEMA, tables.read_note(path, version=VERSION))
    return frame


def test_the_assets_of_a_split_are_counted(read_only):
    result = look(nothing_is_lost_on_the_way, "train")
    assert result.passed
    for name in ("prompt_sets", "sam_cache", "training_index", "hdf5_pack"):
        assert f"| {name} | 12 | 24 |" in words(result)
    assert "| manifest | 12 | - |" in words(result)


@pytest.mark.parametrize("max_failed_fraction", [0.0, 0.9])
def test_a_sample_that_an_index_lost_is_an_error_on_both_sides_of_it(project, max_failed_fraction):
    project.change(data={"max_failed_fraction": max_failed_fraction})
    frame = change_index(project, "train", lambda frame: frame[frame["safe_id"] != frame["safe_id"].iloc[0]])
    result = look(nothing_is_lost_on_the_way, "train")
    gone = frame["safe_id"].iloc[0]
    assert not result.passed
    assert not warns(result)
    assert f"training_index lacks 1 of the 12 samples of sam_cache: {gone}. Materialise training_index" in words(result)
    assert f"hdf5_pack has 1 samples that training_index lacks: {gone}. Materialise hdf5_pack again" in words(result)
    assert "| training_index | 11 | 22 |" in words(result)


def test_a_prompt_set_that_an_index_lost_is_named(project):
    frame = change_index(project, "train", lambda frame: frame.iloc[1:])
    result = look(nothing_is_lost_on_the_way, "train")
    assert not result.passed
    gone = f"{frame['safe_id'].iloc[0]} set {frame['promptset_id'].iloc[0]}"
    both = f"for the same samples: {gone}"
    assert f"training_index has 1 prompt sets less and 0 more than sam_cache has {both}" in words(result)
    assert f"hdf5_pack has 0 prompt sets less and 1 more than training_index has {both}" in words(result)


def test_a_sample_that_the_cache_forgot_is_an_error_where_nothing_may_fail(project):
    path = sam.ledger_path(project.paths.sam_cache("train"))
    ledger = Ledger.load(path)
    gone = next(iter(ledger.entries))
    del ledger.entries[gone]
    ledger.save()
    result = look(nothing_is_lost_on_the_way, "train")
    assert not result.passed
    assert not warns(result)
    assert f"sam_cache lacks 1 of the 12 samples of prompt_sets: {gone}" in words(result)


@pytest.fixture
def one_failed(project):
    """A mask with too few pixels for its points, put up with."""
    mask = np.zeros((40, 60), dtype=bool)
    mask[4, 5:7] = True
    add_sample(project.folder, "shapes/discs/tiny", 101, mask=mask)
    project.change(data={"max_failed_fraction": 0.1})
    project.refresh("train", assets=TO_THE_PACK)
    return project


def test_failed_items_that_are_tolerated_are_a_warning_that_names_them(one_failed):
    result = look(nothing_is_lost_on_the_way, "train")
    assert warns(result)
    assert "prompt_sets lacks 1 of the 13 samples of manifest: shapes__discs__tiny." in words(result)
    assert "data.max_failed_fraction lets that many fail" in words(result)
    assert "sam_cache lacks" not in words(result)
    assert look(pack_holds_the_rows_of_its_index, "train").passed


def test_the_same_failed_items_are_an_error_once_none_is_tolerated(one_failed):
    one_failed.change(data={"max_failed_fraction": 0.0})
    result = look(nothing_is_lost_on_the_way, "train")
    assert not result.passed
    assert not warns(result)
    assert "shapes__discs__tiny. Materialise prompt_sets again." in words(result)


def test_a_trial_is_a_warning_since_it_says_that_it_is_not_complete(project):
    project.materialise("prompt_sets", "sam_cache", "training_index", "hdf5_pack", split="val", limit=1)
    assert not links_of("val", project.paths)[-1].complete
    result = look(nothing_is_lost_on_the_way, "val")
    assert warns(result)
    assert "prompt_sets lacks 1 of the 2 samples of manifest" in words(result)
    assert "not complete: a trial (`limit`)" in words(result)
    assert "| hdf5_pack | 1 | 2 |" in words(result)
