import json

import pytest

from sam_laplace_assets.domain.plan import Item, Plan
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.champion import (
    ChampionStore,
    last_decision,
    previous_holder,
    read_champion,
    read_history,
    require_champion,
)
from sam_laplace_assets.storage.materialise import TooManyFailed
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets_tests.storage.fakes import Work, death, holds, make


def plan(winner="train-a", inputs="1", work=None, nll=0.5, error=None, after=None):
    def decide(item, parts):
        if work is not None:
            work.made.append((item.key, parts))
        if error:
            raise error
        return {"run_id": winner, "training_split": "train", "nll": nll, "validation_pack": "v", "previous": None,
                "verdict": f"{winner} is it", "candidates": [{"run_id": winner}],
                "rejected": [], "after": after, "by_hand": None, "made": "today"}  # fmt: skip

    return Plan([Item("champion", {"decision": inputs})], make=decide)


def decide(folder, *args, **kwargs):
    """A decision that is made from the one in force."""
    make(plan(*args, after=last_decision(folder), **kwargs), ChampionStore(folder))


def decisions(folder):
    return [(one["inputs"], one["run_id"]) for one in read_history(folder)]


def test_the_title_and_every_decision_are_kept(tmp_path):
    assert read_champion(tmp_path) is None
    with pytest.raises(NotMade, match=r"no champion yet.*Materialise champion first"):
        require_champion(tmp_path)
    make(plan(), ChampionStore(tmp_path))
    decide(tmp_path, "train-b", "2")
    champion = require_champion(tmp_path)
    assert (champion.run_id, champion.nll, champion.validation_pack) == ("train-b", 0.5, "v")
    assert decisions(tmp_path) == [("1", "train-a"), ("2", "train-b")]
    assert "candidates" not in json.loads((tmp_path / "champion.json").read_text())


def test_nothing_is_decided_twice(tmp_path):
    work = Work()
    for _ in range(2):
        make(plan(work=work), ChampionStore(tmp_path))
    assert len(work.take()) == 1
    assert len(decisions(tmp_path)) == 1


def test_a_death_at_any_step_leaves_every_decision_in_the_history_once(tmp_path):
    for step in range(100):
        folder = tmp_path / str(step)
        make(plan(), ChampionStore(folder))
        with death(step) as fate:
            decide(folder, "train-b", "2")
        assert read_champion(folder).run_id == decisions(folder)[-1][1]
        decide(folder, "train-b", "2", nll=0.4)  # a GPU may not say the same twice
        assert decisions(folder) == [("1", "train-a"), ("2", "train-b")]
        assert json.loads((folder / "champion.json").read_text())["decision"] == read_history(folder)[-1]["decision"]
        if not fate.happened:
            break
    assert step > 4


def test_a_decision_that_was_recorded_holds_though_other_inputs_came_after_a_death(tmp_path):
    make(plan(), ChampionStore(tmp_path))
    step = 0
    while len(decisions(tmp_path)) == 1:
        with death(step):
            decide(tmp_path, "train-b", "2")
        step += 1
    assert json.loads((tmp_path / "champion.json").read_text())["run_id"] == "train-a"
    assert require_champion(tmp_path).run_id == "train-b"
    decide(tmp_path, "train-c", "3")
    assert decisions(tmp_path) == [("1", "train-a"), ("2", "train-b"), ("3", "train-c")]


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), lambda path: path.write_bytes(b"{")])
def test_a_lost_champion_file_is_written_from_the_history(tmp_path, harm):
    make(plan(), ChampionStore(tmp_path))
    before, work = holds(tmp_path), Work()
    harm(tmp_path / "champion.json")
    assert require_champion(tmp_path).run_id == "train-a"
    assert not ChampionStore(tmp_path).finished(plan(), {})
    make(plan(work=work), ChampionStore(tmp_path))
    assert work.take() == []
    assert holds(tmp_path) == before


def test_a_lost_history_does_not_cost_the_title(tmp_path):
    make(plan(), ChampionStore(tmp_path))
    (tmp_path / "champion_history.jsonl").unlink()
    assert require_champion(tmp_path).run_id == "train-a"


def test_a_decision_that_fails_says_why(tmp_path):
    with pytest.raises(TooManyFailed, match="no pixels"):
        make(plan(error=ValueError("no pixels")), ChampionStore(tmp_path))
    assert holds(tmp_path) == {}


def test_a_history_that_is_damaged_or_newer_is_named(tmp_path):
    make(plan(), ChampionStore(tmp_path))
    path = tmp_path / "champion_history.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + b"{\n")
    with pytest.raises(ValueError, match=r"champion_history\.jsonl holds a line that is no decision.*Mend or remove"):
        require_champion(tmp_path)
    path.write_bytes(good.replace(b'"version": 2', b'"version": 3'))
    with pytest.raises(files.NewerFormat, match=r"champion_history\.jsonl has format version 3.*Upgrade"):
        decide(tmp_path, "train-b", "2")


@pytest.mark.parametrize("left", [0, 1])
def test_a_history_that_lost_its_end_does_not_give_the_title_back(tmp_path, left):
    decide(tmp_path)
    decide(tmp_path, "train-b", "2")
    path = tmp_path / "champion_history.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:left]))
    with pytest.raises(ValueError, match=r"champion_history\.jsonl lacks the last decision.*Put a copy of it back"):
        require_champion(tmp_path)
    path.unlink()
    assert require_champion(tmp_path).run_id == "train-b"


def test_a_decision_made_from_one_that_is_no_longer_in_force_is_refused(tmp_path):
    decide(tmp_path)
    late = plan("train-c", "3", after=last_decision(tmp_path))
    decide(tmp_path, "train-b", "2")
    with pytest.raises(ValueError, match=r"Another decision was taken meanwhile.*Materialise champion again"):
        make(late, ChampionStore(tmp_path))
    assert decisions(tmp_path) == [("1", "train-a"), ("2", "train-b")]
    assert require_champion(tmp_path).run_id == "train-b"


def test_after_a_lost_history_decisions_go_on_from_the_title(tmp_path):
    decide(tmp_path)
    (tmp_path / "champion_history.jsonl").unlink()
    decide(tmp_path, "train-b", "2")
    assert decisions(tmp_path) == [("2", "train-b")]


def test_the_previous_holder_is_one_that_is_still_there(tmp_path):
    for number, winner in enumerate(["train-a", "train-b", "train-c"]):
        decide(tmp_path, winner, str(number))
        files.write_json(tmp_path / f"run_{winner}" / "posterior_meta.json", {})
    assert previous_holder(tmp_path) == "train-b"
    (tmp_path / "run_train-b" / "posterior_meta.json").unlink()
    assert previous_holder(tmp_path) == "train-a"
