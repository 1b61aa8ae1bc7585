import numpy as np
import pytest
from PIL import Image

from sam_laplace_assets.assets.manifest import plan_base_manifest
from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.storage import files, manifest, tables
from sam_laplace_assets.storage.images import UnreadableFile
from sam_laplace_assets.storage.manifest import (
    AllSamples,
    Assignment,
    ManifestStore,
    Place,
    Rows,
    Sample,
    open_manifest,
    read_assignments,
    read_row,
    read_rows,
    write_assignments,
)
from sam_laplace_assets.storage.samples import Found
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets_tests.storage.fakes import KEYS, Work, cut, holds, make
from sam_laplace_assets_tests.storage.tables_of import REFUSED, manifest_plan, row

FORMATS = ("parquet", "csv")
SPLITS = {"a/1": Assignment("train", "d1"), "NA/2": Assignment("val", "d2")}


@pytest.fixture(params=FORMATS)
def place(request, tmp_path):
    return Place(tmp_path, request.param)


def scan(place, keys=KEYS, **plan):
    return make(manifest_plan(keys, **plan), ManifestStore(place, "all_samples"))


def test_rows_come_back_with_their_types_and_nulls(place):
    scan(place)
    rows = {one["safe_id"]: one for one in read_rows(place, "all_samples")}
    split = read_assignments(place)["cat/1"].split
    assert rows["cat__1"] == row("cat__1", split=split)
    assert rows["NA__x"] == row("NA__x", **{**REFUSED, "valid": False, "reason": 'no mask, not "NA"\nnor é'})
    assert rows["NA__x"]["class"] == "NA"
    assert [type(rows["cat__1"][name]) for name in ("image_h", "foreground_fraction", "valid")] in (
        [int, float, bool], [float, float, bool],
    )  # fmt: skip
    assert AllSamples.open(place).complete


def test_only_valid_samples_are_opened(place, tmp_path):
    scan(place)
    opened = open_manifest(place, "all_samples", images_root=tmp_path, masks_root=tmp_path)
    assert [sample.key for sample in opened] == sorted(KEYS)
    assert (len(opened), opened[0].sample_id, opened[0].size) == (3, "cat/1", (9, 8))
    assert opened[1:] == list(opened)[1:]
    assert opened[:None] == list(opened)


def test_a_manifest_that_was_never_made_is_named(place):
    with pytest.raises(NotMade, match="Materialise all_samples first"):
        AllSamples.open(place)
    with pytest.raises(NotMade, match=r"test-sea\.\w+ is not there. Materialise manifest\[test-sea\] first"):
        read_rows(place, "test-sea")


def test_equal_rows_have_an_equal_version_in_either_format_and_any_order(tmp_path):
    versions = {
        scan(Place(tmp_path / f"{one} {len(keys)}", one), keys[::way]).data_version
        for one in FORMATS for way in (1, -1) for keys in (KEYS,)
    }  # fmt: skip
    assert len(versions) == 1


def test_what_is_known_is_not_read_again_and_a_lost_table_is_written_again(place):
    work = Work()
    first = scan(place, work=work)
    before = holds(place.folder)
    place.table("all_samples").unlink()
    assert not is_finished(place)
    work.take()
    assert scan(place, work=work).data_version == first.data_version
    assert work.take() == []
    assert holds(place.folder) == before


def test_a_lost_ledger_has_the_rows_read_again_and_moves_no_sample(place):
    scan(place)
    before, work = holds(place.folder), Work()
    place.ledger("all_samples").unlink()
    scan(place, work=work)
    assert len(work.take()) == len(KEYS) + 1
    assert holds(place.folder) == before


def test_a_sample_that_disappears_keeps_its_split_until_it_returns(place):
    scan(place)
    before = read_assignments(place)
    scan(place, KEYS[2:])
    assert read_assignments(place) == before
    scan(place, ("ant__1", *KEYS))
    assert before.items() <= read_assignments(place).items()


def test_splits_are_remembered_when_the_table_format_changes(tmp_path):
    write_assignments(Place(tmp_path, "parquet"), SPLITS)
    assert read_assignments(Place(tmp_path, "csv")) == SPLITS
    more = SPLITS | {"c/3": Assignment("test", "d3")}
    write_assignments(Place(tmp_path, "csv"), more)
    for one in FORMATS:
        assert read_assignments(Place(tmp_path, one)) == more


def is_finished(place):
    plan, store = manifest_plan(KEYS), ManifestStore(place, "all_samples")
    return store.finished(plan, store.records(plan.items))


def test_lost_splits_are_noticed_and_taken_from_the_table_of_all_samples(place):
    scan(place)
    before, held = read_assignments(place), holds(place.folder)
    place.assignments.unlink()
    assert not is_finished(place)
    scan(place)
    assert is_finished(place)
    assert holds(place.folder) == held
    place.assignments.unlink()
    scan(place, ("ant__1", *KEYS))  # a new one does not move the others
    assert before.items() < read_assignments(place).items()


def test_damaged_splits_are_an_error_that_does_not_draw_them_anew(place):
    assert read_assignments(place) == {}
    write_assignments(place, SPLITS)
    if place.table_format == "parquet":
        cut(place.assignments)
    else:
        place.assignments.write_bytes(b"sample_id,split\n")
    with pytest.raises(tables.TableRefused, match=r"assignments\.\w+ is damaged.*Put a copy of it back"):
        read_assignments(place)


def test_newer_tables_are_refused(place, monkeypatch):
    monkeypatch.setattr(manifest, "VERSION", 2)
    scan(place)
    write_assignments(place, SPLITS)
    monkeypatch.setattr(manifest, "VERSION", 1)
    for read in (lambda: read_rows(place, "all_samples"), lambda: read_assignments(place)):
        with pytest.raises(files.NewerFormat, match=r"has format version 2.*Upgrade"):
            read()


def test_a_sample_opens_its_files_and_refuses_other_content(tmp_path):
    pixels = np.arange(6 * 5 * 3, dtype=np.uint8).reshape(6, 5, 3)
    mask = np.zeros((6, 5), dtype=bool)
    mask[2:4, 1:3] = True
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", mask)
    found = Found("cat/a", "cat", "a.png", "a.npy", None)
    made = read_row(found, images_root=tmp_path, masks_root=tmp_path)
    assert (made["valid"], made["image_h"], made["mask_w"], made["foreground_fraction"]) == (True, 6, 5, 4 / 30)
    assert set(made) == set(manifest.SCHEMA.names)
    sample = Sample(made, tmp_path, tmp_path)
    np.testing.assert_array_equal(sample.image(), pixels)
    np.testing.assert_array_equal(sample.mask(), mask)
    Image.fromarray(pixels[::-1]).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", ~mask)
    for read, kind in ((sample.image, "image"), (sample.mask, "mask")):
        with pytest.raises(UnreadableFile, match=f"The {kind} of cat/a has changed since the manifest was made.*again"):
            read()


def test_a_file_that_cannot_be_read_is_a_refused_row(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    np.save(tmp_path / "a.npy", np.ones((2, 2), dtype=bool))
    made = read_row(Found("cat/a", "cat", "a.png", "a.npy", None), images_root=tmp_path, masks_root=tmp_path)
    assert not made["valid"]
    assert made["reason"]
    alone = read_row(Found("cat/b", "cat", "b.png", None, "no mask"), images_root=tmp_path, masks_root=tmp_path)
    assert (alone["valid"], alone["reason"], alone["image_digest"]) == (False, "no mask", None)


def test_the_schema_is_that_of_the_table(place):
    scan(place)
    frame = tables.read_table(place.table("all_samples"), manifest.SCHEMA)
    assert list(frame) == manifest.SCHEMA.names
    assert frame["valid"].dtype == np.bool_


def test_rows_of_a_table_are_its_rows_one_by_one_and_sliced(place):
    scan(place)
    rows, plain = AllSamples.open(place).rows, read_rows(place, "all_samples")
    assert list(rows) == [rows[at] for at in range(len(rows))] == rows[:] == plain
    assert rows[-1] == plain[-1]
    assert list(rows.valid()) == [one for one in plain if one["valid"]]
    assert list(rows.valid("val")) == [one for one in plain if one["valid"] and one["split"] == "val"]
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_a_base_manifest_is_made_from_the_rows_of_all_samples_and_only_their_digests_are_remembered(place):
    scan(place)
    plan = plan_base_manifest(AllSamples.open(place), "train")
    made = make(plan, ManifestStore(place, "train"))
    wanted = [one for one in read_rows(place, "all_samples") if one["split"] == "train"]
    assert read_rows(place, "train") == wanted
    assert made.data_version == digest(wanted)
    again = make(plan_base_manifest(AllSamples.open(place), "train"), ManifestStore(place, "train"))
    assert (again.made, again.data_version) == (0, made.data_version)
    assert ManifestStore(place, "train").finished(plan, again.records)


def test_a_base_manifest_keeps_the_order_of_its_ids_whatever_that_of_all_samples(place):
    scan(place)
    everything = AllSamples.open(place)
    turned = Rows(everything.rows.table.take(list(range(len(everything.rows)))[::-1]))
    make(plan_base_manifest(AllSamples(turned, True), "train"), ManifestStore(place, "train"))
    assert read_rows(place, "train") == [one for one in everything.rows if one["split"] == "train"]
