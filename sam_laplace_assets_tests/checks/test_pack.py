"""A pack with other rows than its index, or with values that cannot be, is found, and the first one named."""

import h5py
import numpy as np
import pytest

from sam_laplace_assets.checks import arrays_are_finite_and_in_range, pack_holds_the_rows_of_its_index
from sam_laplace_assets.checks.pack import packed_rows
from sam_laplace_assets.storage.rows import OpenPack
from sam_laplace_assets_tests.checks.looking import look, words
from sam_laplace_assets_tests.checks.test_chain import change_index


def spoil(project, name, at, value):
    """Put a value into row, or mask, `at` of split train, in its shard."""
    (shard,) = project.paths.packs.glob("train_shards/*.h5")
    with h5py.File(project.paths.pack("train")) as pack, h5py.File(shard, "r+") as file:
        assert pack["safe_id"][:].tolist() == file["safe_id"][:].tolist()
        file[name][at, 200, 100] = value


@pytest.mark.parametrize(("name", "value", "must"), [
    ("logits_256", np.inf, "finite"), ("logits_256", -np.inf, "finite"), ("logits_256", np.nan, "finite"),
    ("pos_map", 1.001, "from 0 to 1"), ("pos_map", np.nan, "from 0 to 1"), ("neg_map", -0.001, "from 0 to 1"),
    ("neg_map", np.inf, "from 0 to 1"),
])  # fmt: skip
def test_a_value_that_cannot_be_is_found_with_its_sample_and_prompt_set(project, name, value, must):
    spoil(project, name, 9, value)
    spoil(project, name, 11, value)
    result = look(arrays_are_finite_and_in_range, "train")
    sample, promptset = packed_rows(project.paths.pack("train"))[9]
    assert not result.passed
    assert result.severity.value == "ERROR"
    assert f"{name} of {sample}, prompt set {promptset} (row 9), is not {must}" in words(result)
    assert "row 11" not in words(result)


@pytest.mark.parametrize("value", [2, 255])
def test_a_mask_that_is_not_binary_is_found_with_its_sample(project, value):
    spoil(project, "mask", 4, value)
    result = look(arrays_are_finite_and_in_range, "train")
    assert not result.passed
    sample = packed_rows(project.paths.pack("train"))[8][0]
    assert f"mask of {sample} is not 0 or 1" in words(result)


def test_the_largest_values_that_can_be_are_none_that_cannot(project):
    for name, value in {"logits_256": 65504, "pos_map": 1, "neg_map": -0.0, "mask": 1}.items():
        spoil(project, name, 9, value)
    assert look(arrays_are_finite_and_in_range, "train").passed


def test_a_pack_is_read_block_by_block_and_rows_are_counted_over_blocks(project, monkeypatch):
    spoil(project, "pos_map", 9, 2.0)
    lengths, read = [], OpenPack.array

    def spy(self, name, at):
        values = read(self, name, at)
        lengths.append(len(values))
        return values

    monkeypatch.setattr(OpenPack, "array", spy)
    monkeypatch.setattr("sam_laplace_assets.storage.rows.BLOCK", 4)
    assert "(row 9), is not from 0 to 1" in words(look(arrays_are_finite_and_in_range, "train"))
    assert max(lengths) == 4


def test_a_missing_shard_is_told(project):
    (shard,) = project.paths.packs.glob("train_shards/*.h5")
    shard.unlink()
    for check in (arrays_are_finite_and_in_range, pack_holds_the_rows_of_its_index):
        assert f"needs {shard.name}" in words(look(check, "train"))


def test_damage_within_a_shard_is_told(project):
    (shard,) = project.paths.packs.glob("train_shards/*.h5")
    with h5py.File(shard) as file:
        at = file["logits_256"].id.get_chunk_info(3).byte_offset
    with shard.open("r+b") as file:
        file.seek(at + 1000)
        file.write(b"\xff" * 8)
    assert "is damaged in" in words(look(arrays_are_finite_and_in_range, "train"))


def test_rows_in_another_order_than_the_indexs_are_found(project):
    frame = change_index(project, "train", lambda frame: frame.iloc[[1, 0, *range(2, len(frame))]])
    result = look(pack_holds_the_rows_of_its_index, "train")
    first, second = ((frame["safe_id"].iloc[at], int(frame["promptset_id"].iloc[at])) for at in (0, 1))
    assert f"row 0 is {first} in the pack, {second} in the index" in words(result)


def test_rows_that_the_index_does_not_have_are_found(project):
    change_index(project, "train", lambda frame: frame.iloc[:-1])
    assert "the index has 23 rows of the pack's samples, the pack 24" in words(
        look(pack_holds_the_rows_of_its_index, "train")
    )
