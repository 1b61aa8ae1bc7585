import numpy as np
import pytest

from sam_laplace_assets.domain.plan import Item
from sam_laplace_assets.storage.shards import ShardSource, ShardWriter, Slot, read_slots
from sam_laplace_assets_tests.storage.fakes import cut, packed, temporaries


def write(folder, *samples):
    writer = ShardWriter(folder)
    for key, rows in samples:
        writer.add(Item(key, {"rows": f"digest of {key}"}), packed(key, rows=rows))
    return folder / writer.close()


def test_a_shard_says_where_each_sample_lies(tmp_path):
    path = write(tmp_path, ("a", 2), ("ü", 0), ("c", 3))
    assert read_slots(path) == {
        ("a", "digest of a"): Slot(path.name, 0, 0, 2),
        ("ü", "digest of ü"): Slot(path.name, 1, 2, 2),
        ("c", "digest of c"): Slot(path.name, 2, 2, 5),
    }
    source = ShardSource.open(path)
    assert (source.name, source.rows, source.masks) == (f"{tmp_path.name}/{path.name}", 5, 3)
    np.testing.assert_array_equal(source.columns["promptset_id"], [0, 1, 0, 1, 2])


def test_equal_samples_give_a_shard_of_equal_name_and_bytes(tmp_path):
    first, second = write(tmp_path / "a", ("a", 2)), write(tmp_path / "b", ("a", 2))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert write(tmp_path / "c", ("b", 2)).name != first.name


@pytest.mark.parametrize("harm", [cut, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_shard_that_cannot_be_read_holds_nothing(tmp_path, harm):
    path = write(tmp_path, ("a", 1))
    harm(path)
    assert read_slots(path) == {}


def test_an_abandoned_shard_leaves_nothing(tmp_path):
    writer = ShardWriter(tmp_path)
    writer.add(Item("a", {"rows": "1"}), packed("a"))
    writer.abandon()
    assert not temporaries(tmp_path)
