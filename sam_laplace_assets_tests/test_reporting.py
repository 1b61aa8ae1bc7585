"""What the UI shows of a materialisation, and in which order."""

import dagster as dg
import pytest

from sam_laplace_assets.domain.plan import Report
from sam_laplace_assets.reporting import metadata_of
from sam_laplace_assets.resources.tracking import TrackedRun
from sam_laplace_assets.storage.materialise import Outcome

EFFORT = ["items made", "items reused", "seconds", "items per second"]


def shown(report, *, url="", limit=None, **outcome):
    return metadata_of(Outcome("items", {}, **outcome), report, TrackedRun(url=url), limit=limit)


def test_results_come_before_how_they_came_about():
    report = Report(facts={"rows": 3}, tables={"by class": [{"class": "a"}]}, pictures={"curves": b"png"})
    told = shown(report, url="http://127.0.0.1:5000/#/x")
    assert list(told) == ["rows", "by class", "curves", "MLflow run", *EFFORT]


def test_what_is_as_it_should_be_takes_no_room():
    assert list(shown(Report(tables={"invalid samples": []}))) == EFFORT


@pytest.mark.parametrize(("limit", "name", "said"), [
    (3, "trial", "The first 3 samples only."), (None, "incomplete", "What it was made from is a trial"),
])  # fmt: skip
def test_what_lacks_samples_says_so_before_all_else(limit, name, said):
    told = shown(Report(facts={"rows": 3}), limit=limit, complete=False)
    assert next(iter(told)) == name
    assert told[name].value.startswith(said)


def test_failed_items_are_counted_and_listed_with_their_reasons_first():
    told = shown(Report(facts={"rows": 3}), failed={"a__0": "its mask is empty"})
    assert list(told)[:2] == ["items failed", "failed items"]
    assert "| a__0 | its mask is empty |" in told["failed items"].value


def test_a_fact_has_five_digits_and_what_is_tracked_has_all():
    report = Report(facts={"NLL": 0.09356864078403002, "precision": 1e-12, "rows": 123456789},
                    metrics={"nll": 0.09356864078403002})  # fmt: skip
    told = shown(report)
    assert (told["NLL"], told["precision"], told["rows"]) == (0.093569, 1e-12, 123456789)
    assert report.metrics["nll"] == 0.09356864078403002


def test_a_sentence_wraps_and_a_word_stays_as_it_is():
    told = shown(Report(facts={"verdict": "a keeps the title.", "run": "train-a_b_c"}))
    assert told["verdict"] == dg.MetadataValue.md("a keeps the title.")
    assert told["run"] == "train-a_b_c"
