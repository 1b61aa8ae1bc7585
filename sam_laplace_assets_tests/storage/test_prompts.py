import json
import shutil

import pytest

from sam_laplace_assets.storage import files, prompts
from sam_laplace_assets.storage.prompts import Prompts, PromptStore, ledger_path, read_prompt_sets
from sam_laplace_assets_tests.storage.fakes import KEYS, Work, cut, flip, holds, make, prompt_plan, temporaries


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "train"
    make(prompt_plan(), PromptStore(made))
    return made


def lost(folder):
    """What materialise makes again; afterwards everything is as it was."""
    work = Work()
    again = make(prompt_plan(work=work), PromptStore(folder))
    assert set(again.records) == set(KEYS)
    return [key for key, _ in work.take()]


def test_prompt_sets_come_back_as_they_were_drawn(folder):
    view = Prompts.open(folder, split="train")
    assert view.complete
    for item in prompt_plan().items:
        drawn = prompt_plan().make(item, frozenset())
        assert view.read(item.key) == drawn
        assert view.points[item.key] == {"0000": prompts.points_digest(drawn[0])}
    assert not temporaries(folder)


@pytest.mark.parametrize("harm", [cut, lambda path: path.unlink(), lambda path: path.write_bytes(b"[]")])
def test_a_file_that_is_cut_gone_or_foreign_is_made_again_alone(folder, harm):
    before = holds(folder)
    harm(folder / f"{KEYS[1]}.json")
    assert lost(folder) == [KEYS[1]]
    assert holds(folder) == before


def test_a_file_with_other_points_is_refused_when_it_is_read_and_found_without_a_ledger(folder):
    path = folder / f"{KEYS[1]}.json"
    flip(path, at=path.read_bytes().rindex(b"3"))
    assert lost(folder) == []  # its size and time are those that the ledger knows
    with pytest.raises(ValueError, match=rf"{KEYS[1]}\.json is damaged.*Delete it to have it made again"):
        Prompts.open(folder, split="train").read(KEYS[1])
    ledger_path(folder).unlink()
    assert lost(folder) == [KEYS[1]]


def test_a_file_that_was_drawn_anew_since_it_was_listed_is_refused(folder, tmp_path):
    view = Prompts.open(folder, split="train")
    other = tmp_path / "other"
    make(prompt_plan(seed=1), PromptStore(other))
    shutil.copy2(other / f"{KEYS[0]}.json", folder)
    with pytest.raises(ValueError, match=rf"{KEYS[0]}\.json holds other points than when it was listed"):
        view.read(KEYS[0])


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), cut, lambda path: path.write_bytes(b"")])
def test_a_ledger_that_is_lost_is_built_from_the_files(folder, harm):
    first = make(prompt_plan(), PromptStore(folder))
    harm(ledger_path(folder))
    assert lost(folder) == []
    assert make(prompt_plan(), PromptStore(folder)).data_version == first.data_version
    assert Prompts.open(folder, split="train").complete


def test_a_stale_ledger_is_brought_up_to_date_from_the_files(folder):
    stale = ledger_path(folder).read_bytes()
    make(prompt_plan(seeds={KEYS[0]: 5}), PromptStore(folder))
    ledger_path(folder).write_bytes(stale)
    work = Work()
    make(prompt_plan(seeds={KEYS[0]: 5}, work=work), PromptStore(folder))
    assert work.take() == []


def test_another_seed_of_one_sample_makes_that_sample_again(folder):
    work = Work()
    make(prompt_plan(seeds={KEYS[2]: 1}, work=work), PromptStore(folder))
    assert [key for key, _ in work.take()] == [KEYS[2]]


def test_a_sample_that_leaves_and_returns_is_not_made_again(folder):
    work = Work()
    make(prompt_plan(KEYS[1:], work=work), PromptStore(folder))
    assert list(Prompts.open(folder, split="train").points) == list(KEYS[1:])
    make(prompt_plan(work=work), PromptStore(folder))
    assert work.take() == []


def test_files_of_a_newer_version_are_refused_not_overwritten(folder):
    path = folder / f"{KEYS[0]}.json"
    path.write_text(json.dumps({"format": "prompt_sets", "version": 2}))
    before = path.read_bytes()
    for read in (lambda: make(prompt_plan(), PromptStore(folder)), lambda: read_prompt_sets(path)):
        with pytest.raises(files.NewerFormat, match=rf"{KEYS[0]}\.json has format version 2.*Upgrade"):
            read()
    assert path.read_bytes() == before
