import pytest

from sam_laplace_assets.domain.plan import Item, Plan
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.pack import Pack, PackStore
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.validation import PART, ValidationStore, open_validation_pack
from sam_laplace_assets_tests.storage.fakes import KEYS, make, pack_plan


@pytest.fixture
def pack(tmp_path):
    make(pack_plan(), PackStore(tmp_path, "val"))
    return Pack.open(tmp_path / "val.h5")


def name(path, pack):
    item = Item("validation_pack", {PART: pack.data_version}, pack)
    return make(Plan([item], make=lambda item, parts: pack), ValidationStore(path))


def test_the_named_pack_is_opened(pack, tmp_path):
    path = tmp_path / "validation_pack.json"
    with pytest.raises(NotMade, match=r"validation_pack\.json is not there. Materialise validation_pack first"):
        open_validation_pack(path)
    outcome = name(path, pack)
    assert (outcome.made, outcome.data_version) == (1, pack.data_version)
    assert open_validation_pack(path).data_version == pack.data_version
    assert name(path, pack).made == 0


def test_a_pack_that_was_replaced_is_not_the_one_that_was_named(pack, tmp_path):
    path = tmp_path / "validation_pack.json"
    name(path, pack)
    make(pack_plan(KEYS[1:]), PackStore(tmp_path, "val"))
    with pytest.raises(NotMade, match=r"val\.h5 has changed since it became the validation pack"):
        open_validation_pack(path)
    assert name(path, Pack.open(tmp_path / "val.h5")).made == 1


def test_a_newer_file_is_refused(pack, tmp_path):
    path = tmp_path / "validation_pack.json"
    files.write_json(path, {"version": 2})
    for read in (lambda: open_validation_pack(path), lambda: name(path, pack)):
        with pytest.raises(files.NewerFormat, match=r"validation_pack\.json has format version 2.*Upgrade"):
            read()
