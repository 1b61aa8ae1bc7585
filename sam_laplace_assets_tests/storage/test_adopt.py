"""Files that become ours where they are, or by a link."""

import json
import os

import numpy as np
import pytest

from sam_laplace_assets.domain.plan import Item, digest
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.adopt import CacheToAdopt, TakenSet, keep_aside, link
from sam_laplace_assets.storage.sam import ARRAYS, SampleOutput, SamStore, SetOutput

PROVENANCE = {"logits": {"image_digest": "ab", "points": "cd"}, "maps": {"points": "cd", "gaussian_sigma": 8.0}}
ITEM = Item("cat__1", {f"0003/{part}": digest(value) for part, value in PROVENANCE.items()})
FACTS = {
    "logits": {"branch": 1, "predicted_ious": [0.5, 0.6, 0.1]},
    "maps": {"sigma": 8.0},
    "": {"sample_id": "cat/1", "k_pairs": 1, "points": {"pos": [[1, 2]], "neg": [[3, 4]]},
         "points_256": {"pos": [[1.0, 2.0]], "neg": [[3.0, 4.0]]}},
}  # fmt: skip
VALUES = {name: np.full((256, 256), at, np.float16) for at, name in enumerate(sum(ARRAYS.values(), ()))}


@pytest.fixture
def old(tmp_path):
    """A folder with the three arrays."""
    folder = tmp_path / "old"
    folder.mkdir()
    for name, array in VALUES.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def taken(old, *parts):
    paths = {name: old / f"{name}.npy" for part in parts for name in ARRAYS[part]}
    facts = FACTS[""] | {name: value for part in parts for name, value in FACTS[part].items()}
    return TakenSet(3, paths, {name: files.file_sha256(path) for name, path in paths.items()}, facts,
                    {part: PROVENANCE[part] for part in parts})  # fmt: skip


def adopt(folder, old, *parts):
    store = CacheToAdopt(folder)
    return store.write(ITEM, frozenset(f"0003/{part}" for part in parts), [taken(old, *parts)])


def made(folder):
    """The same as the cache's own store writes it."""
    facts = FACTS[""] | FACTS["logits"] | FACTS["maps"]
    return SamStore(folder).write(ITEM, frozenset(ITEM.parts), SampleOutput([SetOutput(3, VALUES, facts, PROVENANCE)]))


def meta(folder):
    return json.loads((folder / "cat__1" / "promptset_0003" / "meta.json").read_text())


@pytest.mark.parametrize("steps", [[("logits", "maps")], [("logits",), ("maps",)], [("maps",), ("logits",)]])
def test_what_is_adopted_at_once_or_bit_by_bit_is_what_the_store_would_have_written(tmp_path, old, steps):
    expected = made(tmp_path / "made" / "val")
    for parts in steps:
        record = adopt(tmp_path / "new" / "val", old, *parts)
    assert record == expected
    assert meta(tmp_path / "new" / "val") == meta(tmp_path / "made" / "val")
    assert SamStore(tmp_path / "new" / "val").records([ITEM]) == {"cat__1": expected}


def test_what_is_lacking_is_made_by_the_store_and_completes_it(tmp_path, old):
    folder = tmp_path / "new" / "val"
    record = adopt(folder, old, "maps")
    assert record.lacks(ITEM) == {"0003/logits"}
    output = SetOutput(3, {"logits_256": VALUES["logits_256"]}, FACTS[""] | FACTS["logits"],
                       {"logits": PROVENANCE["logits"]})  # fmt: skip
    assert not SamStore(folder).write(ITEM, frozenset({"0003/logits"}), SampleOutput([output])).lacks(ITEM)
    assert (folder / "cat__1" / "promptset_0003" / "pos_map.npy").samefile(old / "pos_map.npy")


def test_arrays_are_linked_and_the_store_never_writes_into_them(tmp_path, old):
    folder = tmp_path / "new" / "val"
    adopt(folder, old, "logits", "maps")
    before = (old / "logits_256.npy").read_bytes()
    assert (folder / "cat__1" / "promptset_0003" / "logits_256.npy").samefile(old / "logits_256.npy")
    output = SetOutput(3, {"logits_256": VALUES["logits_256"] + 7}, FACTS[""] | FACTS["logits"],
                       {"logits": PROVENANCE["logits"]})  # fmt: skip
    SamStore(folder).write(ITEM, frozenset({"0003/logits"}), SampleOutput([output]))
    assert (old / "logits_256.npy").read_bytes() == before


def test_a_file_that_changes_meanwhile_is_named(tmp_path, old):
    value = taken(old, "logits")
    np.save(old / "logits_256.npy", VALUES["logits_256"] + 1)
    with pytest.raises(ValueError, match="the files of cat__1 changed while they were taken over; adopt again"):
        CacheToAdopt(tmp_path / "new" / "val").write(ITEM, frozenset({"0003/logits"}), [value])


def test_where_nothing_can_be_linked_it_is_copied(tmp_path, old, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    link(old / "pos_map.npy", tmp_path / "there" / "pos_map.npy")
    assert (tmp_path / "there" / "pos_map.npy").read_bytes() == (old / "pos_map.npy").read_bytes()
    assert not (tmp_path / "there" / "pos_map.npy").samefile(old / "pos_map.npy")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["pos_map.npy"]


def test_linking_twice_leaves_one_file(tmp_path, old):
    for _ in range(2):
        link(old / "pos_map.npy", tmp_path / "there" / "pos_map.npy")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["pos_map.npy"]


def test_a_link_to_a_file_is_followed(tmp_path, old):
    (tmp_path / "pointer.npy").symlink_to(old / "pos_map.npy")
    link(tmp_path / "pointer.npy", tmp_path / "there.npy")
    assert not (tmp_path / "there.npy").is_symlink()
    assert (tmp_path / "there.npy").samefile(old / "pos_map.npy")


def test_what_is_kept_aside_stays_when_its_place_is_taken(tmp_path, old):
    path, aside = old / "pos_map.npy", old / "original" / "pos_map.npy"
    before = path.read_bytes()
    keep_aside(old, path)
    files.write_bytes(path, b"ours")
    keep_aside(old, path)
    keep_aside(old, old / "nothing.npy")
    assert aside.read_bytes() == before
    assert path.read_bytes() == b"ours"
