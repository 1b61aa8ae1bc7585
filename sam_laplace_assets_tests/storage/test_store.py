import pytest

from sam_laplace_assets.domain.plan import Item, Plan, Record, data_version, missing
from sam_laplace_assets.storage import store as stores
from sam_laplace_assets.storage.ledger import Ledger
from sam_laplace_assets.storage.prompts import PromptStore, ledger_path
from sam_laplace_assets.storage.store import NotMade, OneItemStore, PlainStore, RowStore, listing
from sam_laplace_assets_tests.storage.fakes import KEYS, Work, cut, death, make, prompt_plan


def rows(keys=KEYS, work=None, **more):
    def read(item, parts):
        if work is not None:
            work.made.append((item.key, parts))
        return {"name": item.key, "n": len(item.key)}

    return Plan([Item(key, {"row": f"seen {key}"}) for key in keys], make=read, **more)


def test_rows_live_in_the_ledger(tmp_path):
    work = Work()
    made = make(rows(work=work), RowStore(tmp_path / "l.parquet"))
    again = make(rows(work=work), RowStore(tmp_path / "l.parquet"))
    assert len(work.take()) == len(KEYS)
    assert again.records == made.records
    assert again.data_version == made.data_version
    assert again.records[KEYS[0]].summary == {"name": KEYS[0], "n": len(KEYS[0])}


def test_finish_leaves_the_items_of_the_plan_in_its_order_and_nothing_else(tmp_path):
    make(rows(), RowStore(tmp_path / "l.parquet"))
    make(rows(KEYS[:0:-1]), RowStore(tmp_path / "l.parquet"))
    assert list(Ledger.load(tmp_path / "l.parquet").entries) == list(KEYS[:0:-1])


def test_a_partition_is_finished_with_just_these_items(tmp_path):
    plan, path = rows(), tmp_path / "l.parquet"
    assert not RowStore(path).finished(plan, {})
    made = make(plan, RowStore(path))
    assert RowStore(path).finished(plan, made.records)
    fewer = rows(KEYS[1:])
    assert not RowStore(path).finished(fewer, {key: made.records[key] for key in KEYS[1:]})
    assert not RowStore(path).finished(rows(complete=False), made.records)


def test_who_only_looks_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SECONDS_BETWEEN_SAVES", 0.0)
    folder = tmp_path / "train"
    make(prompt_plan(), PromptStore(folder))
    ledger_path(folder).unlink()
    assert not missing(prompt_plan(), PromptStore(folder).records(prompt_plan().items))
    assert not ledger_path(folder).exists()


def test_a_partition_in_the_making_is_not_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SECONDS_BETWEEN_SAVES", 0.0)
    folder = tmp_path / "train"
    with pytest.raises(NotMade, match=r"prompt_sets\[train\] has not been made yet.*Materialise prompt_sets\[train\]"):
        listing(ledger_path(folder), name="prompt_sets[train]")
    make(prompt_plan(), PromptStore(folder))
    assert listing(ledger_path(folder), name="prompt_sets[train]").complete
    with death(at=8) as fate:
        make(prompt_plan(seed=1), PromptStore(folder))
    assert fate.happened
    with pytest.raises(NotMade, match=r"was not made to its end\. Materialise"):
        listing(ledger_path(folder), name="prompt_sets[train]")


def test_what_was_saved_on_the_way_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "SECONDS_BETWEEN_SAVES", 0.0)
    work, path = Work(), tmp_path / "l.parquet"
    with death(at=7):
        make(rows(work=work), RowStore(path))
    before = {key for key, _ in work.take()}
    make(rows(work=work), RowStore(path))
    after = {key for key, _ in work.take()}
    assert before
    assert after < set(KEYS)
    assert before | after == set(KEYS)


def test_rows_whose_ledger_is_lost_are_read_again_to_the_same_version(tmp_path):
    work, path = Work(), tmp_path / "l.parquet"
    first = make(rows(work=work), RowStore(path))
    cut(path)
    work.take()
    assert make(rows(work=work), RowStore(path)).data_version == first.data_version
    assert len(work.take()) == len(KEYS)


def test_plain_stores_are_finished_when_their_items_are_there():
    plan = rows(KEYS[:1])
    records = {KEYS[0]: Record({"row": "a"}, {"row": "held"})}
    assert PlainStore().finish(plan, records, complete=True) == data_version(plan, records)
    assert PlainStore().finished(plan, records)
    assert OneItemStore().finish(plan, records, complete=True) == "held"
    assert OneItemStore().finish(plan, {}, complete=False) == ""
