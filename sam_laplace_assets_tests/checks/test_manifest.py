import pytest

from sam_laplace_assets.checks import (
    every_class_is_judged,
    every_group_in_one_split,
    no_image_in_two_splits,
    no_image_of_it_in_another_split,
    no_sample_in_two_splits,
    splits_have_their_share,
)
from sam_laplace_assets.storage.manifest import SCHEMA, VERSION
from sam_laplace_assets.storage.tables import read_note, read_table, write_table
from sam_laplace_assets_tests.checks.looking import look, warns, words
from sam_laplace_assets_tests.small_project import SETTINGS, SmallProject


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Run a check on a table of (sample, class, split, image digest)."""
    import pandas as pd
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    project = SmallProject(tmp_path).use(monkeypatch)

    def run(check, *rows):
        keys = ("sample_id", "class", "split", "image_digest")
        table = [dict.fromkeys(SCHEMA.names) | dict(zip(keys, row, strict=True)) | {"valid": True} for row in rows]
        path = project.paths.manifests.table("all_samples")
        note = {"format": "manifest", "version": VERSION, "complete": True, "data_version": "x"}
        write_table(path, pd.DataFrame(table, columns=SCHEMA.names), SCHEMA, note)
        return check()

    return run


def test_a_sample_in_two_splits_is_found(checked):
    result = checked(no_sample_in_two_splits, ("a/0", "a", "train", "x"), ("a/0", "a", "val", "y"))
    assert not result.passed
    assert "sample_id a/0 is in train, val" in str(result.metadata)


def test_an_image_in_two_splits_is_found(checked):
    result = checked(no_image_in_two_splits, ("a/0", "a", "train", "x"), ("a/1", "a", "test", "x"))
    assert not result.passed
    assert "image_digest x is in test, train" in str(result.metadata)


def test_an_image_of_a_split_that_another_has_is_found_and_the_split_is_named(project):
    train, test = (project.paths.manifests.table(name) for name in ("train", "test"))
    rows, note = read_table(train, SCHEMA), read_note(test, version=VERSION)
    write_table(test, rows.assign(split="test"), SCHEMA, note)
    found = look(no_image_of_it_in_another_split, "test")
    assert not found.passed
    assert "is in test, train" in found.metadata["test"].value
    assert look(no_image_of_it_in_another_split, "val").metadata["val"].value == "holds"
    assert {"train", "val", "test"} <= look(no_image_of_it_in_another_split).metadata.keys()


def test_the_same_image_twice_in_one_split_is_no_leak(checked):
    assert checked(no_image_in_two_splits, ("a/0", "a", "val", "x"), ("a/1", "a", "val", "x")).passed


def test_a_class_that_is_trained_and_not_judged_is_a_warning(checked):
    rows = [("a/0", "a", "train", "1"), ("b/0", "b", "train", "2"), ("a/1", "a", "val", "3"), ("c/0", "c", "test", "4")]
    result = checked(every_class_is_judged, *rows)
    assert not result.passed
    assert result.severity.value == "WARN"
    assert "b" in str(result.metadata)
    assert checked(every_class_is_judged, *rows, ("b/1", "b", "val", "5")).passed


def test_a_group_that_was_torn_before_there_was_a_rule_is_a_warning(checked, tmp_path):
    rows = [("a/p1_0", "a", "train", "1"), ("a/p1_1", "a", "val", "2"), ("a/p2_0", "a", "test", "3")]
    assert checked(every_group_in_one_split, *rows).passed
    SmallProject(tmp_path).change(data={"group_by": r"p\d+"})
    result = checked(every_group_in_one_split, *rows)
    assert not result.passed
    assert result.severity.value == "WARN"
    assert "a/p1_0 (train), a/p1_1 (val)" in str(result.metadata)


def samples(**counts):
    """Rows of one class, so many a split."""
    splits = [split for split, count in counts.items() for _ in range(count)]
    return [(f"a/{at}", "a", split, f"{at}") for at, split in enumerate(splits)]


def test_splits_that_lost_most_of_their_share_are_a_warning_with_the_figures(checked):
    result = checked(splits_have_their_share, *samples(train=96, val=3, test=12))
    assert warns(result)
    assert "val has 3 of 111 samples, a new draw would give it 11" in words(result)
    assert "`resplit`" in words(result)
    assert "| train | 96 | 86.5% | 89 |" in words(result)


@pytest.mark.parametrize("counts", [(80, 10, 10), (81, 9, 10), (9, 1, 0), (5, 0, 1), (1, 0, 0)])
def test_splits_as_near_as_whole_samples_go_have_their_share(checked, counts):
    assert checked(splits_have_their_share, *samples(**dict(zip(("train", "val", "test"), counts, strict=True)))).passed


def test_one_sample_a_class_is_rounded_into_train_and_no_warning(checked):
    assert checked(splits_have_their_share, *((f"{at}/0", f"{at}", "train", f"{at}") for at in range(50))).passed


def test_a_group_that_cannot_be_divided_is_no_warning(checked, tmp_path):
    rows = [(f"a/film_{at}", "a", "train", f"{at}") for at in range(60)]
    rows += [(f"a/{at}", "a", "val" if at % 2 else "test", f"b{at}") for at in range(4)]
    assert warns(checked(splits_have_their_share, *rows))
    SmallProject(tmp_path).change(data={"group_by": "film"})
    assert checked(splits_have_their_share, *rows).passed


def test_an_official_split_is_not_judged_by_its_shares(checked, tmp_path):
    (tmp_path / "official.csv").write_text("sample_id,split\na/0,test\n")
    SmallProject(tmp_path).change(data={"splits_file": "official.csv"})
    result = checked(splits_have_their_share, *samples(test=30))
    assert result.passed
    assert "data.splits_file says" in words(result)
