import pytest

from sam_laplace_assets.checks import (
    every_class_is_judged,
    every_group_in_one_split,
    no_image_in_two_splits,
    no_sample_in_two_splits,
)
from sam_laplace_assets.storage.manifest import SCHEMA, VERSION
from sam_laplace_assets.storage.tables import write_table
from sam_laplace_assets_tests.small_project import BASE, SETTINGS, SmallProject


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


def test_the_checks_pass_on_what_the_graph_made(read_only):
    with read_only.instance() as instance:
        for check in (no_sample_in_two_splits, no_image_in_two_splits, every_group_in_one_split, every_class_is_judged):
            (spec,) = check.check_specs
            (record,) = instance.event_log_storage.get_asset_check_execution_history(spec.key, limit=1)
            assert record.event.asset_check_evaluation.passed
    assert BASE


def test_a_sample_in_two_splits_is_found(checked):
    result = checked(no_sample_in_two_splits, ("a/0", "a", "train", "x"), ("a/0", "a", "val", "y"))
    assert not result.passed
    assert "sample_id a/0 is in train, val" in str(result.metadata)


def test_an_image_in_two_splits_is_found(checked):
    result = checked(no_image_in_two_splits, ("a/0", "a", "train", "x"), ("a/1", "a", "test", "x"))
    assert not result.passed
    assert "image_digest x is in test, train" in str(result.metadata)


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
