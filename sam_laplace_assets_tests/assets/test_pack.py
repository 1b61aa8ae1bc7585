"""A pack that is read ahead by threads is the one that is made sample by sample, and a damaged file is named."""

from dataclasses import replace

import pytest

from sam_laplace_assets.assets.pack import plan_pack
from sam_laplace_assets.storage.materialise import TooManyFailed
from sam_laplace_assets.storage.pack import Pack, PackStore
from sam_laplace_assets_tests.benchmarks.bench_pack import draw_cache
from sam_laplace_assets_tests.storage.fakes import flip, make

SAMPLES = 11  # more than are read ahead


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return draw_cache(tmp_path_factory.mktemp("project"), SAMPLES, rows=2)


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("train_shards/*.h5")}


def test_reading_ahead_and_writing_behind_give_the_shards_that_one_by_one_gives(index, tmp_path):
    plan = plan_pack(index)
    ahead, one_by_one = tmp_path / "ahead", tmp_path / "one_by_one"
    make(plan, PackStore(ahead, "train"))
    make(replace(plan, make_all=None, writers=0), PackStore(one_by_one, "train"))
    assert shards(ahead) == shards(one_by_one)
    opened = [Pack.open(folder / "train.h5") for folder in (ahead, one_by_one)]
    assert opened[0].data_version == opened[1].data_version
    assert opened[0].safe_ids == tuple(index.frame["safe_id"].unique())


def test_a_damaged_file_is_named_and_the_other_samples_are_packed(index, tmp_path):
    damaged = index.project_root / index.frame["pos_map_path"].iloc[3]
    flip(damaged)
    try:
        with pytest.raises(TooManyFailed, match=r"discs__0001: .*pos_map.npy is damaged"):
            make(plan_pack(index), PackStore(tmp_path, "train"))
    finally:
        flip(damaged)
    assert Pack.open(tmp_path / "train.h5").safe_ids == tuple(
        key for key in index.frame["safe_id"].unique() if key != "discs__0001"
    )
