"""Reports: whole or not there, concluded from samples, and never told twice."""

import contextlib
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sam_laplace_assets.domain.plan import Item, Plan
from sam_laplace_assets.storage import files, tables
from sam_laplace_assets.storage.materialise import materialise
from sam_laplace_assets.storage.reports import (
    PART,
    Findings,
    Layout,
    ReportStore,
    SampleReportStore,
    plain,
    read_summary,
    require_facts,
)
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets_tests.storage.fakes import Died, death

SCHEMA = pa.schema([("name", pa.string()), ("value", pa.float64())])
LAYOUT = Layout("evaluation", {"scores": SCHEMA})


def found(*values, picture=b"png"):
    frame = pd.DataFrame({"name": [f"n{at}" for at in range(len(values))], "value": values})
    return Findings({"scores": frame}, {"curve": picture}, {"mean": float(np.mean(values)), "none": float("nan")})


def report_plan(*values, provenance="a", force=False):
    return Plan([Item("test", {PART: provenance})], make=lambda item, parts: found(*values), force=force)


def sample_plan(values, made=None, *, complete=True):
    def make(item, parts):
        if made is not None:
            made.append(item.key)
        return {"value": item.source}

    def conclude(samples):
        return found(*[one["value"] for _, one in samples])

    items = [Item(key, {PART: f"{key} {value}"}, value) for key, value in values.items()]
    return Plan(items, make=make, finish=conclude, complete=complete)


def done(plan, store):
    return materialise(plan, store, progress=lambda *_: None)


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_a_report_gives_back_what_was_found(tmp_path, table_format):
    layout = Layout("evaluation", {"scores": SCHEMA}, table_format)
    done(report_plan(1.0, 2.0), ReportStore(tmp_path, layout))
    assert require_facts(tmp_path, name="evaluation[test]") == {"mean": 1.5, "none": None}
    assert tables.read_table(tmp_path / f"scores.{table_format}", SCHEMA)["value"].tolist() == [1.0, 2.0]
    assert (tmp_path / "curve.png").read_bytes() == b"png"


def test_a_report_is_made_once_and_again_when_it_follows_from_something_else(tmp_path):
    store = ReportStore(tmp_path, LAYOUT)
    assert [done(report_plan(1.0, provenance=one), store).made for one in ("a", "a", "b")] == [1, 0, 1]


def test_equal_findings_have_one_data_version_whatever_they_were_made_from(tmp_path):
    store = ReportStore(tmp_path, LAYOUT)
    versions = [done(report_plan(value, provenance=one), store).data_version
                for value, one in ((1.0, "a"), (1.0, "b"), (2.0, "c"))]  # fmt: skip
    assert versions[0] == versions[1] != versions[2]


@pytest.mark.parametrize("name", ["scores.parquet", "curve.png", "summary.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{}")])
def test_a_report_that_lost_a_file_is_made_again(tmp_path, name, damage):
    store = ReportStore(tmp_path, LAYOUT)
    done(report_plan(1.0), store)
    damage(tmp_path / name)
    with pytest.raises(NotMade, match=r"Materialise evaluation\[test\] first"):
        require_facts(tmp_path, name="evaluation[test]")
    assert done(report_plan(1.0), store).made == 1


def test_a_write_that_dies_leaves_a_report_that_is_whole_or_not_there(tmp_path):
    done(report_plan(1.0), ReportStore(tmp_path, LAYOUT))
    for at in range(40):
        with death(at) as fate, contextlib.suppress(Died):
            done(report_plan(2.0, provenance="b"), ReportStore(tmp_path, LAYOUT))
        summary = read_summary(tmp_path)
        assert summary is None or summary["facts"]["mean"] in (1.0, 2.0)
        if not fate.happened:
            break
    assert read_summary(tmp_path)["facts"]["mean"] == 2.0


def test_pictures_of_the_report_before_are_gone_and_those_of_others_stay(tmp_path):
    store = ReportStore(tmp_path, LAYOUT)
    before = replace(found(1.0), pictures={"curve": b"png", "older": b"png"})
    done(Plan([Item("test", {PART: "a"})], make=lambda item, parts: before), store)
    (tmp_path / "holiday.png").write_bytes(b"not ours")
    assert (tmp_path / "older.png").exists()
    done(report_plan(2.0, provenance="b"), store)
    assert {path.name for path in tmp_path.glob("*.png")} == {"curve.png", "holiday.png"}


@pytest.mark.parametrize(("before", "after"), [("parquet", "csv"), ("csv", "parquet")])
def test_tables_in_another_format_take_the_place_of_those_before(tmp_path, before, after):
    for table_format in (before, after):
        layout = Layout("evaluation", {"scores": SCHEMA}, table_format)
        assert done(report_plan(1.0), ReportStore(tmp_path, layout)).made == 1
        store = SampleReportStore(tmp_path / "by_sample", layout)
        plan = sample_plan({"a": 1.0})
        assert not store.finished(plan, store.records(plan.items))
        done(plan, store)
        assert store.finished(plan, store.records(plan.items))
    for folder in (tmp_path, tmp_path / "by_sample"):
        kept = {path.name for path in folder.iterdir() if path.is_file()} - {"samples.ledger.parquet"}
        assert kept == {
            f"scores.{after}",
            "curve.png",
            "summary.json",
            *(["scores.csv.json"] if after == "csv" else []),
        }


def test_a_report_of_a_newer_version_is_refused(tmp_path):
    done(report_plan(1.0), ReportStore(tmp_path, LAYOUT))
    summary = files.read_json(tmp_path / "summary.json")
    files.write_json(tmp_path / "summary.json", {**summary, "version": 99})
    with pytest.raises(files.NewerFormat, match="format version 99"):
        ReportStore(tmp_path, LAYOUT).records([Item("test", {PART: "a"})])


def test_a_report_with_other_tables_than_its_layout_is_refused(tmp_path):
    plan = Plan([Item("test", {PART: "a"})], make=lambda item, parts: Findings({}))
    with pytest.raises(ValueError, match=r"has the tables \['scores'\]"):
        done(plan, ReportStore(tmp_path, LAYOUT))


def test_only_samples_that_changed_are_made_and_the_conclusion_is_of_all(tmp_path):
    made = []
    done(sample_plan({"a": 1.0, "b": 2.0}, made), SampleReportStore(tmp_path, LAYOUT))
    done(sample_plan({"a": 1.0, "b": 4.0, "c": 7.0}, made), SampleReportStore(tmp_path, LAYOUT))
    assert made == ["a", "b", "b", "c"]
    assert read_summary(tmp_path)["facts"]["mean"] == 4.0


def test_a_sample_that_left_is_no_part_of_the_conclusion(tmp_path):
    done(sample_plan({"a": 1.0, "b": 2.0}), SampleReportStore(tmp_path, LAYOUT))
    plan = sample_plan({"b": 2.0})
    store = SampleReportStore(tmp_path, LAYOUT)
    assert not store.finished(plan, store.records(plan.items))
    done(plan, store)
    assert read_summary(tmp_path)["facts"]["mean"] == 2.0


def test_samples_survive_the_loss_of_the_ledger_and_of_the_conclusion(tmp_path):
    values, made = {"a": 1.0, "b": 2.0}, []
    first = done(sample_plan(values), SampleReportStore(tmp_path, LAYOUT))
    for name in ("samples.ledger.parquet", "summary.json"):
        (tmp_path / name).unlink()
        again = done(sample_plan(values, made), SampleReportStore(tmp_path, LAYOUT))
        assert (made, again.data_version) == ([], first.data_version)
        assert read_summary(tmp_path)["facts"]["mean"] == 1.5


def test_a_damaged_sample_is_made_again(tmp_path):
    made = []
    done(sample_plan({"a": 1.0, "b": 2.0}), SampleReportStore(tmp_path, LAYOUT))
    path = tmp_path / "samples" / "a.json"
    path.write_text(path.read_text().replace('"value": 1.0', '"value": 1.5'))
    done(sample_plan({"a": 1.0, "b": 2.0}, made), SampleReportStore(tmp_path, LAYOUT))
    assert made == ["a"]


def test_a_trial_is_concluded_again_once_it_is_whole(tmp_path):
    done(sample_plan({"a": 1.0}, complete=False), SampleReportStore(tmp_path, LAYOUT))
    assert not read_summary(tmp_path)["complete"]
    done(sample_plan({"a": 1.0}), SampleReportStore(tmp_path, LAYOUT))
    assert read_summary(tmp_path)["complete"]


def test_plain_makes_json_of_numpy_and_of_numbers_that_are_not_finite():
    given = {"a": np.float32(0.5), "b": np.array([1.0, np.nan]), "c": (np.int64(3), float("inf")), 4: np.bool_(True)}
    assert plain(given) == {"a": 0.5, "b": [1.0, None], "c": [3, None], "4": True}
