"""Which rows a pack's samples have, read off its shards."""

import pytest

from sam_laplace_assets.storage.pack import Pack, PackRefused, PackStore
from sam_laplace_assets.storage.scores import rows_digests
from sam_laplace_assets_tests.storage.fakes import KEYS, make, pack_plan


def test_every_sample_has_the_digest_that_its_rows_were_written_with(tmp_path):
    for keys in (KEYS[:2], KEYS, KEYS[::-1]):  # the later packs lie in two shards, and not in the order of either
        plan = pack_plan(keys)
        make(plan, PackStore(tmp_path, "val"))
        found = rows_digests(Pack.open(tmp_path / "val.h5"))
        assert found == {item.key: item.parts["rows"] for item in plan.items}
    assert len(list((tmp_path / "val_shards").glob("*.h5"))) > 1


def test_a_pack_that_was_replaced_is_refused(tmp_path):
    make(pack_plan(KEYS[:1]), PackStore(tmp_path, "val"))
    opened = Pack.open(tmp_path / "val.h5")
    make(pack_plan(KEYS), PackStore(tmp_path, "val"))
    with pytest.raises(PackRefused, match="was replaced after it was opened"):
        rows_digests(opened)
