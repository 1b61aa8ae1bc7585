import json
import os

import numpy as np
import pytest

from sam_laplace_assets.domain.plan import data_version
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.sam import SamCache, SamStore, ledger_path, read_array, read_arrays
from sam_laplace_assets_tests.storage.fakes import KEYS, Work, cut, flip, holds, make, sam_plan, temporaries

LOGITS, MAPS = "logits_256.npy", ("pos_map.npy", "neg_map.npy")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "val"
    make(sam_plan(), SamStore(made))
    return made


def lost(folder, **plan):
    """What materialise makes again."""
    work = Work()
    make(sam_plan(work=work, **plan), SamStore(folder))
    return {key: sorted(parts) for key, parts in work.take()}


def states(folder, name):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob(name)}


def age(folder):
    """Give all files a time long ago, so that a write shows."""
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))


def test_arrays_come_back_as_they_were_made(folder):
    cache, plan = SamCache.open(folder, split="val"), sam_plan()
    assert cache.complete
    for item in plan.items:
        outputs = plan.make(item, frozenset(item.parts)).sets
        cached = list(cache.sets(item.key))
        assert [one.promptset_id for one in cached] == [0, 1]
        for one, output in zip(cached, outputs, strict=True):
            for name, sha256 in one.sha256.items():
                array = read_array(folder / one.path(name), sha256=sha256)
                np.testing.assert_array_equal(array, output.arrays[name])
    assert not temporaries(folder)


def test_many_arrays_are_read_in_their_places_as_each_is_alone(tmp_path):
    rng = np.random.default_rng(0)
    stored = [rng.normal(size=(256, 256)).astype(dtype) for dtype in ("<f2", ">f2", "<f2")]
    stored[2] = np.asfortranarray(stored[2])
    paths = [tmp_path / f"{number}.npy" for number in range(3)]
    for path, array in zip(paths, stored, strict=True):
        np.save(path, array)
    sha256 = [files.file_sha256(path) for path in paths]
    alone = [read_array(path, sha256=one) for path, one in zip(paths, sha256, strict=True)]
    found = read_arrays(paths, sha256=sha256)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.stack(alone))
    np.testing.assert_array_equal(found, np.stack(stored))
    flip(paths[0])
    with pytest.raises(ValueError, match=r"0\.npy is damaged: its SHA-256 is"):
        read_arrays(paths, sha256=sha256)
    paths[0].unlink()
    with pytest.raises(ValueError, match=r"0\.npy cannot be read"):
        read_arrays(paths, sha256=sha256)


def test_nothing_is_made_twice(folder):
    before = holds(folder)
    assert lost(folder) == {}
    assert holds(folder) == before


def test_another_sigma_makes_the_maps_again_and_leaves_the_logits_alone(folder):
    age(folder)
    before = states(folder, LOGITS)
    parts = ["0000/maps", "0001/maps"]
    assert lost(folder, sigma=4.0) == dict.fromkeys(KEYS, parts)
    assert states(folder, LOGITS) == before
    meta = json.loads((folder / KEYS[0] / "promptset_0001" / "meta.json").read_text())
    assert (meta["sigma"], meta["branch"]) == (4.0, 0)
    assert lost(folder, sigma=4.0) == {}


def test_another_image_makes_the_logits_of_that_sample_again_and_leaves_the_maps_alone(folder):
    age(folder)
    before = [states(folder, name) for name in MAPS]
    others = states(folder / KEYS[0], LOGITS)
    assert lost(folder, images={KEYS[1]: "new"}) == {KEYS[1]: ["0000/logits", "0001/logits"]}
    assert [states(folder, name) for name in MAPS] == before
    assert states(folder / KEYS[0], LOGITS) == others


def test_fewer_prompt_sets_and_then_more_again_recompute_nothing(folder):
    first = make(sam_plan(), SamStore(folder))
    assert lost(folder, sets=1) == {}
    cache = SamCache.open(folder, split="val")
    assert [one.promptset_id for one in cache.sets(KEYS[0])] == [0]
    assert lost(folder) == {}
    assert make(sam_plan(), SamStore(folder)).data_version == first.data_version


def test_facts_on_prompt_sets_that_are_not_wanted_are_not_told(folder):
    for _ in range(2):
        records = make(sam_plan(sets=1), SamStore(folder)).records
        assert [list(record.summary) for record in records.values()] == [["0000"]] * len(KEYS)
        ledger_path(folder).unlink()


def test_one_more_prompt_set_makes_only_that(folder):
    age(folder)
    before = states(folder, "meta.json")
    assert lost(folder, sets=3) == {key: ["0002/logits", "0002/maps"] for key in KEYS}
    assert before.items() <= states(folder, "meta.json").items()


@pytest.mark.parametrize("harm", [cut, lambda path: path.unlink()])
@pytest.mark.parametrize(
    ("name", "parts"),
    [(LOGITS, ["0001/logits"]), (MAPS[0], ["0001/maps"]), (MAPS[1], ["0001/maps"]),
     ("meta.json", ["0001/logits", "0001/maps"])],
)  # fmt: skip
def test_a_file_that_is_cut_or_gone_has_its_part_made_again(folder, name, parts, harm):
    before = holds(folder)
    harm(folder / KEYS[1] / "promptset_0001" / name)
    assert lost(folder) == {KEYS[1]: parts}
    assert holds(folder) == before


def test_a_flipped_bit_is_refused_when_it_is_read_and_found_without_a_ledger(folder):
    path = folder / KEYS[1] / "promptset_0001" / LOGITS
    before = holds(folder)
    flip(path)
    assert lost(folder) == {}  # its size and time are those that the ledger knows
    sha256 = list(SamCache.open(folder, split="val").sets(KEYS[1]))[1].sha256["logits_256"]
    with pytest.raises(ValueError, match=r"promptset_0001/logits_256\.npy is damaged.*Delete it and materialise"):
        read_array(path, sha256=sha256)
    ledger_path(folder).unlink()
    assert lost(folder) == {KEYS[1]: ["0001/logits"]}
    assert holds(folder) == before


def test_an_array_that_is_gone_is_named(folder):
    path = folder / KEYS[1] / "promptset_0001" / LOGITS
    path.unlink()
    with pytest.raises(ValueError, match=r"logits_256\.npy cannot be read.*Materialise sam_cache again"):
        read_array(path, sha256="")


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), cut, lambda path: path.write_bytes(b"")])
def test_a_ledger_that_is_lost_is_built_from_the_files(folder, harm):
    first = make(sam_plan(), SamStore(folder))
    harm(ledger_path(folder))
    again = make(sam_plan(), SamStore(folder))
    assert again.made == 0
    assert again.records == first.records
    assert again.data_version == first.data_version


def test_equal_content_has_an_equal_version_whatever_the_order_of_making(folder, tmp_path):
    other, plan = tmp_path / "other", sam_plan()
    for keys, sets in ((KEYS[2:], 1), (KEYS[1:], 2), (KEYS, 1)):
        make(sam_plan(keys, sets=sets, sigma=float(sets)), SamStore(other))
    assert make(plan, SamStore(other)).data_version == make(plan, SamStore(folder)).data_version
    assert data_version(plan, SamStore(other).records(plan.items[::-1])) == make(plan, SamStore(folder)).data_version


def test_files_that_do_not_belong_to_a_sample_disturb_nobody(folder):
    (folder / KEYS[0] / ".DS_Store").write_bytes(b"1")
    (folder / KEYS[0] / "promptset_0000" / "Thumbs.db").write_bytes(b"1")
    (folder / KEYS[0] / "notes").mkdir()
    assert lost(folder) == {}
    ledger_path(folder).unlink()
    assert lost(folder) == {}


def test_force_makes_everything_again(folder):
    assert lost(folder, force=True) == {item.key: sorted(item.parts) for item in sam_plan().items}


def test_files_of_a_newer_version_are_refused_not_overwritten(folder):
    path = folder / KEYS[0] / "promptset_0000" / "meta.json"
    path.write_text(json.dumps({"format": "sam_cache", "version": 2}))
    before = holds(folder)
    with pytest.raises(files.NewerFormat, match=r"promptset_0000/meta\.json has format version 2.*Upgrade"):
        make(sam_plan(), SamStore(folder))
    assert holds(folder) == before
