import shutil
import signal
import subprocess
import sys

import pytest

from sam_laplace_assets.domain.plan import Item, Plan, Record, digest
from sam_laplace_assets.storage import store as stores
from sam_laplace_assets.storage.champion import ChampionStore
from sam_laplace_assets.storage.index import IndexStore
from sam_laplace_assets.storage.manifest import ManifestStore, Place
from sam_laplace_assets.storage.materialise import TooManyFailed, materialise
from sam_laplace_assets.storage.pack import PackStore
from sam_laplace_assets.storage.panels import PanelStore
from sam_laplace_assets.storage.prompts import Prompts, PromptStore, ledger_path
from sam_laplace_assets.storage.sam import SamStore
from sam_laplace_assets_tests.storage import tables_of
from sam_laplace_assets_tests.storage.fakes import (
    KEYS,
    Work,
    death,
    holds,
    make,
    pack_plan,
    prompt_plan,
    quiet,
    sam_plan,
)

MORE = (*KEYS, "eel__1")
SCENES = {
    "prompts": (lambda folder: PromptStore(folder / "train"), prompt_plan(), prompt_plan(MORE, seeds={KEYS[0]: 1})),
    "sam, another sigma": (lambda folder: SamStore(folder / "val"), sam_plan(KEYS[:1]), sam_plan(KEYS[:1], sigma=2.0)),
    "sam, another image": (lambda folder: SamStore(folder / "val"), sam_plan(KEYS[1:2], sets=1),
                           sam_plan(KEYS[1:2], sets=2, images={KEYS[1]: "new"})),
    "sam, written by threads": (lambda folder: SamStore(folder / "val"), sam_plan(KEYS[:2], sets=1, writers=2),
                                sam_plan(KEYS[:2], sets=1, sigma=2.0, writers=2)),
    "manifest": (lambda folder: ManifestStore(Place(folder), "all_samples"), tables_of.manifest_plan(KEYS),
                 tables_of.manifest_plan(MORE)),
    "manifest as CSV": (lambda folder: ManifestStore(Place(folder, "csv"), "all_samples"),
                        tables_of.manifest_plan(KEYS), tables_of.manifest_plan(MORE)),
    "index": (lambda folder: IndexStore(folder / "val_index", "parquet"), tables_of.index_plan(KEYS),
              tables_of.index_plan(MORE)),
    "index as CSV": (lambda folder: IndexStore(folder / "val_index", "csv"), tables_of.index_plan(KEYS),
                     tables_of.index_plan(MORE)),
    "panels": (PanelStore, tables_of.panel_plan(KEYS), tables_of.panel_plan(MORE, seed=1)),
    "pack": (lambda folder: PackStore(folder, "val"), pack_plan(KEYS[:2]), pack_plan(KEYS[:2], seeds={KEYS[0]: 1})),
}  # fmt: skip


@pytest.mark.parametrize("scene", SCENES)
def test_a_run_that_dies_at_any_step_is_completed_to_the_content_of_an_undisturbed_one(scene, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SECONDS_BETWEEN_SAVES", 0.0)
    store_in, old, new = SCENES[scene]
    before, undisturbed = tmp_path / "before", tmp_path / "undisturbed"
    make(old, store_in(before))
    shutil.copytree(before, undisturbed)
    wanted = make(new, store_in(undisturbed))
    for step in range(1000):
        dying = shutil.copytree(before, tmp_path / "dying")
        with death(step) as fate:
            make(new, store_in(dying))
        completed = make(new, store_in(dying))
        assert holds(dying) == holds(undisturbed)
        assert completed.data_version == wanted.data_version
        assert completed.records == wanted.records
        again = store_in(dying)
        assert again.finished(new, again.records(new.items))
        shutil.rmtree(dying)
        if not fate.happened:
            break
    assert step >= 3


KILLED = """
import sys
from pathlib import Path
from sam_laplace_assets.storage.materialise import materialise
from sam_laplace_assets.storage.sam import SamStore
from sam_laplace_assets_tests.storage.fakes import sam_plan
materialise(sam_plan([f"k{at}" for at in range(500)]), SamStore(Path(sys.argv[1]) / "val"),
            progress=lambda *told: print(*told, flush=True))
"""


def test_a_run_that_is_killed_is_completed_to_the_content_of_an_undisturbed_one(tmp_path):
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "killed")], stdout=subprocess.PIPE)
    assert run.stdout is not None
    for _ in range(21):  # the first line says where the work begins
        assert run.stdout.readline()
    run.send_signal(signal.SIGKILL)
    run.communicate()
    work, keys = Work(), [f"k{at}" for at in range(60)]
    completed = make(sam_plan(keys, work=work), SamStore(tmp_path / "killed" / "val"))
    undisturbed = make(sam_plan(keys), SamStore(tmp_path / "undisturbed" / "val"))
    assert 0 < len(work.take()) <= 40
    assert completed.data_version == undisturbed.data_version
    killed = holds(tmp_path / "killed")
    assert {name: killed[name] for name in holds(tmp_path / "undisturbed")} == holds(tmp_path / "undisturbed")


def test_a_failed_sample_does_not_lose_the_others_and_is_listed_with_its_reason(tmp_path):
    plan = prompt_plan(failing=KEYS[1:2])
    with pytest.raises(TooManyFailed) as failure:
        make(plan, PromptStore(tmp_path / "val"))
    told = str(failure.value)
    assert "1 of 3 items failed, more than data.max_failed_fraction (0.0) allows; the others are stored." in told
    assert f"  {KEYS[1]}: the mask of {KEYS[1]} is empty" in told
    view = Prompts.open(tmp_path / "val", split="val")
    assert list(view.points) == [KEYS[0], KEYS[2]]
    assert not view.complete
    work = Work()
    assert make(prompt_plan(work=work), PromptStore(tmp_path / "val")).failed == {}
    assert [key for key, _ in work.take()] == [KEYS[1]]
    assert Prompts.open(tmp_path / "val", split="val").complete


@pytest.mark.parametrize(("fraction", "allowed"), [(0.0, 0), (0.33, 0), (0.34, 1), (0.5, 1), (0.67, 2), (1.0, 3)])
def test_max_failed_fraction_is_respected(tmp_path, fraction, allowed):
    for failing in range(4):
        store = PromptStore(tmp_path / str(failing))
        plan = prompt_plan(failing=KEYS[:failing], max_failed_fraction=fraction)
        if failing <= allowed:
            outcome = make(plan, store)
            assert set(outcome.failed) == set(KEYS[:failing])
            assert outcome.complete
        else:
            with pytest.raises(TooManyFailed):
                make(plan, store)


def test_items_that_failed_while_planning_count(tmp_path):
    plan = prompt_plan(failed={"fox__1": "it has no mask"}, max_failed_fraction=0.2)
    with pytest.raises(TooManyFailed, match=r"1 of 4 items failed(.|\n)*fox__1: it has no mask"):
        make(plan, PromptStore(tmp_path / "val"))
    assert set(make(prompt_plan(failed={"fox__1": "gone"}, max_failed_fraction=0.25),
                    PromptStore(tmp_path / "val")).failed) == {"fox__1"}  # fmt: skip


def test_many_failures_are_cut_short(tmp_path):
    keys = [f"k{at}" for at in range(30)]
    with pytest.raises(TooManyFailed, match="and 10 more"):
        make(prompt_plan(keys, failing=keys), PromptStore(tmp_path / "val"))


def test_an_item_that_was_good_and_fails_when_it_is_made_anew_is_listed_no_more(tmp_path):
    make(prompt_plan(), PromptStore(tmp_path / "val"))
    with pytest.raises(TooManyFailed):
        make(prompt_plan(seeds={KEYS[0]: 1}, failing=KEYS[:1]), PromptStore(tmp_path / "val"))
    assert KEYS[0] not in Prompts.open(tmp_path / "val", split="val").points


def test_a_full_disk_is_no_failure_of_an_item(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PromptStore, "write_files", full)
    with pytest.raises(OSError, match="No space"):
        make(prompt_plan(), PromptStore(tmp_path / "val"))


def test_units_are_counted_and_progress_is_told(tmp_path):
    def two(item, parts):
        return 2

    told = []
    make(prompt_plan(KEYS[:1]), PromptStore(tmp_path / "val"))
    outcome = materialise(prompt_plan(weight=two, unit="points"), PromptStore(tmp_path / "val"),
                          progress=lambda *seen: told.append(seen))  # fmt: skip
    assert (outcome.made, outcome.reused) == (4, 2)
    assert told == [(0, 0, 4, "points"), (2, 0, 4, "points"), (4, 0, 4, "points")]
    assert outcome.counts().keys() == {"made", "reused", "failed", "seconds", "made_per_second"}


def test_a_trial_says_that_it_is_one(tmp_path):
    make(prompt_plan(complete=False), PromptStore(tmp_path / "val"))
    assert not Prompts.open(tmp_path / "val", split="val").complete
    assert make(prompt_plan(), PromptStore(tmp_path / "val")).made == 0
    assert Prompts.open(tmp_path / "val", split="val").complete


def test_force_makes_everything_again_to_the_same_content(tmp_path):
    first, work = make(prompt_plan(), PromptStore(tmp_path / "val")), Work()
    forced = make(prompt_plan(force=True, work=work), PromptStore(tmp_path / "val"))
    assert len(work.take()) == len(KEYS)
    assert forced.data_version == first.data_version


def test_equal_content_has_an_equal_version_whatever_the_ledger_says(tmp_path):
    first = make(prompt_plan(), PromptStore(tmp_path / "a")).data_version
    for key in KEYS[::-1]:
        make(prompt_plan([key]), PromptStore(tmp_path / "b"))
    ledger_path(tmp_path / "b").unlink()
    assert make(prompt_plan(), PromptStore(tmp_path / "b")).data_version == first
    assert make(prompt_plan(seeds={KEYS[0]: 1}), PromptStore(tmp_path / "b")).data_version != first
    assert make(prompt_plan(), PromptStore(tmp_path / "b")).data_version == first


def test_two_items_of_one_key_are_refused():
    with pytest.raises(ValueError, match="1 item keys come twice in one plan, such as a"):
        Plan([Item("a", {}), Item("b", {}), Item("a", {})], make=lambda item, parts: None)


def test_a_record_lacks_parts_that_were_made_from_something_else():
    item = Item("a", {"0000/logits": "1", "0000/maps": "2"})
    record = Record({"0000/logits": "1", "0000/maps": "old", "0001/maps": "3"}, {}, {"0000": "fact", "0001": "fact"})
    assert record.lacks(item) == {"0000/maps"}
    assert record.of(item) == Record({"0000/logits": "1", "0000/maps": "old"}, {}, {"0000": "fact"})


def test_a_digest_depends_on_content_alone():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": "1"})


def test_one_item_that_fails_says_why(tmp_path):
    def broken(item, parts):
        raise ValueError("the pack has no rows")

    for store in (IndexStore(tmp_path / "index", "parquet"), ChampionStore(tmp_path)):
        with pytest.raises(TooManyFailed, match=r"^the pack has no rows"):
            materialise(Plan([Item("one", {"part": "1"})], make=broken), store, progress=quiet)
