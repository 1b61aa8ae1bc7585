import json
import os
import shutil

import h5py
import numpy as np
import pytest

from sam_laplace_assets.storage import files, pack, shards
from sam_laplace_assets.storage.materialise import TooManyFailed
from sam_laplace_assets.storage.pack import Pack, PackRefused, PackStore
from sam_laplace_assets.storage.rows import StreamedRows, load_rows
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets_tests.storage.fakes import (
    KEYS,
    Work,
    cut,
    death,
    flip,
    make,
    pack_plan,
    packed,
    temporaries,
)


@pytest.fixture
def path(tmp_path):
    make(pack_plan(), PackStore(tmp_path, "val"))
    return tmp_path / "val.h5"


def shard_files(path):
    return {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in (path.parent / "val_shards").glob("*.h5")}


def again(path, *args, **plan):
    """What is written when the plan is materialised once more."""
    work = Work()
    make(pack_plan(*args, work=work, **plan), PackStore(path.parent, "val"))
    return [key for key, _ in work.take()]


def expect(path, keys=KEYS, seeds=None):
    """A pack holds these samples in this order, as `packed` makes them."""
    opened = Pack.open(path)
    rows = load_rows(opened)
    assert opened.safe_ids == tuple(keys)
    samples = [packed(key, rows=int(key[-1]), seed=(seeds or {}).get(key, 0)) for key in keys]
    numbers = np.repeat(np.arange(len(keys)), [int(key[-1]) for key in keys])
    np.testing.assert_array_equal(opened.images, numbers)
    for channel, name in enumerate(shards.ARRAYS):
        wanted = np.concatenate([sample.arrays[name] for sample in samples])
        np.testing.assert_array_equal(rows.inputs[:, channel].numpy(), wanted)
    np.testing.assert_array_equal(rows.masks.numpy(), np.stack([sample.mask for sample in samples])[numbers])
    with h5py.File(path, "r") as file:
        for name in shards.NUMBERS:
            assert file[name][:].tolist() == [value for sample in samples for value in sample.numbers[name]]


def test_a_pack_holds_what_was_written_in_the_order_of_the_plan(path):
    expect(path)
    opened = Pack.open(path)
    assert (opened.split, opened.complete, len(opened)) == ("val", True, 4)
    assert opened.bytes == 4 * 7 * 256 * 256
    assert not temporaries(path.parent)


def test_rows_are_of_many_shards_as_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "ROWS_PER_SHARD", 1)
    make(pack_plan(), PackStore(tmp_path, "val"))
    assert len(shard_files(tmp_path / "val.h5")) == 3
    expect(tmp_path / "val.h5")
    assert again(tmp_path / "val.h5", KEYS[::-1]) == []
    expect(tmp_path / "val.h5", KEYS[::-1])


def test_nothing_is_written_twice(path):
    before = path.read_bytes(), path.stat().st_mtime_ns, shard_files(path)
    assert again(path) == []
    assert (path.read_bytes(), path.stat().st_mtime_ns, shard_files(path)) == before


def test_one_new_sample_writes_one_new_shard_and_leaves_the_others_alone(path):
    before = shard_files(path)
    assert again(path, (*KEYS, "eel__2")) == ["eel__2"]
    after = shard_files(path)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    expect(path, (*KEYS, "eel__2"))


def test_a_sample_that_leaves_is_gone_from_the_rows_and_writes_no_shard(path):
    before = shard_files(path)
    assert again(path, KEYS[1:]) == []
    assert shard_files(path) == before
    expect(path, KEYS[1:])


def test_a_sample_that_changed_is_read_from_its_new_shard(path):
    assert again(path, seeds={KEYS[0]: 1}) == [KEYS[0]]
    expect(path, seeds={KEYS[0]: 1})


def test_a_shard_with_few_live_rows_is_superseded(path):
    (old,) = shard_files(path)
    seeds = dict.fromkeys(KEYS[:2], 1)  # 3 of its 4 rows
    assert again(path, seeds=seeds) == list(KEYS)
    expect(path, seeds=seeds)
    assert again(path, ("eel__1", *KEYS), seeds=seeds) == ["eel__1"]
    assert old.exists()  # for those who still read the pack that needs it
    os.utime(old, (0, 0))
    assert again(path, ("fox__1", "eel__1", *KEYS), seeds=seeds) == ["fox__1"]
    assert not old.exists()


def test_a_trial_removes_no_shard(path):
    before = shard_files(path)
    again(path, ("ant__1",), complete=False)
    again(path, ("bee__1",), complete=False)
    assert not Pack.open(path).complete
    assert again(path) == []
    assert before.items() <= shard_files(path).items()


def test_shards_written_by_force_are_those_that_are_read(path, monkeypatch):
    again(path, (*KEYS, "eel__2"))
    stale = shard_files(path)
    for one in stale:
        with h5py.File(one, "r+") as file:
            file["pos_map"][:] = 7
    assert again(path, (*KEYS, "eel__2"), force=True) == [*KEYS, "eel__2"]
    expect(path, (*KEYS, "eel__2"))


def test_a_missing_or_cut_shard_is_refused_by_name_and_written_again(path):
    (shard,) = shard_files(path)
    for harm, found in ((cut, r"found \d+ bytes"), (lambda one: one.unlink(), "found none")):
        harm(shard)
        with pytest.raises(PackRefused, match=rf"needs {shard.name} with \d+ bytes, {found}.*materialise hdf5_pack"):
            Pack.open(path)
        assert again(path) == list(KEYS)
        expect(path)


def test_a_shard_that_goes_while_it_is_read_is_refused_by_name(path):
    opened, (shard,) = Pack.open(path), shard_files(path)
    for read in (lambda rows: rows.read(np.arange(2)), lambda rows: load_rows(opened)):
        rows = StreamedRows(opened)
        assert rows.opened
        kept = shard.rename(shard.with_suffix(".away"))
        with pytest.raises(PackRefused, match=f"needs {shard.name} .* found none"):
            read(rows)
        kept.rename(shard)


def test_a_flipped_bit_is_refused_by_name(path):
    (shard,) = shard_files(path)
    with h5py.File(shard, "r") as file:
        at = file["pos_map"].id.get_chunk_info(2).byte_offset
    flip(shard, at=at + 1000)
    opened = Pack.open(path)
    for read in (lambda: load_rows(opened), lambda: StreamedRows(opened).read(np.array([1, 2]))):
        with pytest.raises(
            PackRefused, match=rf"pos_map at .* is damaged in val_shards/{shard.name}.*Delete that shard"
        ):
            read()
    shard.unlink()
    assert again(path) == list(KEYS)
    expect(path)


def test_a_pack_whose_file_is_cut_is_refused_and_written_again(path):
    cut(path)
    with pytest.raises(PackRefused, match=r"val\.h5 is not a readable HDF5 file"):
        Pack.open(path)
    assert again(path) == []
    expect(path)


def test_moving_the_folder_keeps_a_pack_readable(path, tmp_path_factory, monkeypatch):
    moved = tmp_path_factory.mktemp("elsewhere") / "packs"
    path.parent.rename(moved)
    expect(moved / "val.h5")
    monkeypatch.chdir(moved.parent)
    rows = StreamedRows(Pack.open((moved / "val.h5").relative_to(moved.parent)))
    assert rows.opened
    monkeypatch.chdir("/")
    assert rows.read(np.arange(4))[0].isfinite().all()
    assert again(moved / "val.h5") == []


def test_a_pack_that_was_never_made_is_named(tmp_path):
    with pytest.raises(NotMade, match=r"test\.h5 is not there. Materialise hdf5_pack\[test\] first"):
        Pack.open(tmp_path / "test.h5")


def test_another_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "val.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(PackRefused, match=r"not a pack of this project\. Move it away"):
        Pack.open(tmp_path / "val.h5")


def test_a_pack_of_a_newer_version_is_refused_not_replaced(path):
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = shards.VERSION + 1
    before = path.read_bytes()
    for read in (lambda: Pack.open(path), lambda: again(path)):
        with pytest.raises(files.NewerFormat, match=r"val\.h5 has format version 3.*Upgrade"):
            read()
    assert path.read_bytes() == before


def test_a_shard_of_a_newer_version_is_refused(path):
    (shard,) = shard_files(path)
    with h5py.File(shard, "r+") as file:
        file.attrs["version"] = shards.VERSION + 1
    with pytest.raises(files.NewerFormat, match=rf"{shard.name} has format version 3"):
        again(path)


def test_the_numbers_of_points_come_in_the_order_of_the_rows(path):
    opened, samples = Pack.open(path), [packed(key, rows=int(key[-1])) for key in KEYS]
    for name in ("n_pos", "n_neg"):
        assert getattr(opened, name).tolist() == [value for sample in samples for value in sample.numbers[name]]


def test_a_pack_of_the_version_before_is_refused_and_written_again_beside_its_shards(path):
    opened, shards_of_now = Pack.open(path), set(shard_files(path))
    before = as_version_1(path)
    for read in (lambda: Pack.open(path), lambda: load_rows(opened)):
        with pytest.raises(PackRefused, match=r"val\.h5 has format version 1, .*Materialise hdf5_pack again"):
            read()
    assert again(path) == list(KEYS)
    expect(path)
    assert Pack.open(path).data_version == opened.data_version
    assert set(shard_files(path)) == {*shards_of_now, before}  # for those who still read the pack before
    assert again(path) == []


def as_version_1(path):
    """Make a pack one that knows no numbers of points; its one shard then, which has another name."""
    (shard,) = shard_files(path)
    old = shard.rename(shard.with_name(f"{'0' * 24}.h5"))
    for one in (old, path):
        with h5py.File(one, "r+") as file:
            file.attrs["version"] = 1
            for name in ("n_pos", "n_neg"):
                del file[name]
    with h5py.File(path, "r+") as file:
        file.attrs["shards"] = json.dumps({old.name: old.stat().st_size})
    return old


def test_equal_content_has_an_equal_version_whatever_the_order_of_making(path, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for keys in (KEYS[2:], KEYS[1:], KEYS):
        make(pack_plan(keys), PackStore(other, "val"))
    assert Pack.open(other / "val.h5").data_version == Pack.open(path).data_version
    assert again(path, KEYS[::-1]) == []
    assert Pack.open(path).data_version != Pack.open(other / "val.h5").data_version


def test_a_pack_without_rows_can_be_read(tmp_path):
    make(pack_plan(()), PackStore(tmp_path, "val"))
    assert len(load_rows(Pack.open(tmp_path / "val.h5"))) == 0


def test_a_pack_whose_writer_dies_is_the_old_one_or_the_new_one(path, tmp_path_factory):
    step = 0
    while True:
        folder = tmp_path_factory.mktemp("dying")
        shutil.copytree(path.parent, folder, dirs_exist_ok=True)
        with death(step) as fate:
            make(pack_plan((*KEYS[1:], "eel__1")), PackStore(folder, "val"))
        if not fate.happened:
            break
        expect(folder / "val.h5", Pack.open(folder / "val.h5").safe_ids)
        make(pack_plan((*KEYS[1:], "eel__1")), PackStore(folder, "val"))
        expect(folder / "val.h5", (*KEYS[1:], "eel__1"))
        shutil.rmtree(folder)
        step += 1
    assert step >= 5


def test_a_failed_sample_is_missing_from_a_pack_that_says_so(tmp_path):
    with pytest.raises(TooManyFailed, match="dog__1: the mask of dog__1 has changed"):
        make(pack_plan(failing=KEYS[2:]), PackStore(tmp_path, "val"))
    assert not Pack.open(tmp_path / "val.h5").complete
    expect(tmp_path / "val.h5", KEYS[:2])


def test_a_shard_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(dataset, values):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "append", full)
    with pytest.raises(OSError, match="No space"):
        make(pack_plan(), PackStore(tmp_path, "val"))
    assert not temporaries(tmp_path)


def test_leftovers_of_killed_writers_go_with_the_next_pack(path):
    left = [path.parent / f"{files.TEMPORARY}1", path.parent / "val_shards" / f"{files.TEMPORARY}2"]
    for one in left:
        one.write_bytes(b"1")
        os.utime(one, (0, 0))
    again(path, KEYS[1:])
    assert not temporaries(path.parent)
