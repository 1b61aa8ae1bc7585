import pytest

from sam_laplace_assets.domain.plan import Item, Plan, Record
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.runs import RunStore, current_run
from sam_laplace_assets.storage.store import NotMade

PLAN = Plan([Item("train-1", {"run": "a"})], make=lambda item, parts: None)
RECORDS = {"train-1": Record({"run": "a"}, {"run": "sha256"})}


def test_the_pointer_names_the_run_that_was_finished_last(tmp_path):
    pointer = tmp_path / "current-train.json"
    store = RunStore(tmp_path, pointer)
    with pytest.raises(NotMade, match=r"head\[train\] has not been made yet: current-train\.json.*Materialise"):
        current_run(pointer, name="head[train]")
    assert not store.finished(PLAN, RECORDS)
    assert store.finish(PLAN, RECORDS, complete=True) == "sha256"
    assert store.finished(PLAN, RECORDS)
    assert current_run(pointer, name="head[train]") == "train-1"


def test_a_run_that_could_not_be_made_leaves_the_pointer_alone(tmp_path):
    pointer = tmp_path / "current-train.json"
    assert RunStore(tmp_path, pointer).finish(PLAN, {}, complete=False) == ""
    assert not pointer.exists()


def test_a_newer_pointer_is_refused(tmp_path):
    pointer = tmp_path / "current-train.json"
    files.write_json(pointer, {"version": 2, "run_id": "x"})
    with pytest.raises(files.NewerFormat, match=r"current-train\.json has format version 2.*Upgrade"):
        current_run(pointer, name="head[train]")
