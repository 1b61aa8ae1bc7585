import tracemalloc

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam_laplace_assets.domain.plan import Item, Record, digest
from sam_laplace_assets.storage import files, ledger, tables
from sam_laplace_assets.storage.ledger import Entry, Ledger
from sam_laplace_assets_tests.storage.fakes import cut, flip

WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=5)
ENTRIES = st.dictionaries(
    WORDS,
    st.builds(
        Entry, WORDS, st.builds(Record, st.dictionaries(WORDS, WORDS), st.dictionaries(WORDS, WORDS),
                                st.dictionaries(WORDS, st.none() | st.integers() | WORDS)),
    ),
    max_size=4,
)  # fmt: skip


def some(path, n=3):
    record = Record({"part": "a"}, {"part": "b"}, {"fact": 1})
    return Ledger(path, {f"key {at}": Entry("seen", record) for at in range(n)}, True, "v1")


@settings(max_examples=40, deadline=None)
@given(ENTRIES, st.booleans(), WORDS)
def test_a_ledger_comes_back_as_it_was_in_its_order(tmp_path_factory, entries, complete, version):
    kept = Ledger(tmp_path_factory.mktemp("ledger") / "l.parquet", entries, complete, version)
    kept.save()
    back = Ledger.load(kept.path)
    assert back == kept
    assert list(back.entries) == list(entries)


def test_what_was_read_is_written_again_as_it_was_and_decoded_once_in_a_row(tmp_path, monkeypatch):
    some(tmp_path / "l.parquet", n=5).save()
    before, loaded = (tmp_path / "l.parquet").read_bytes(), Ledger.load(tmp_path / "l.parquet")
    decoded = []
    monkeypatch.setattr(ledger.json, "loads", lambda text: decoded.append(text) or {"part": "a"})
    loaded.save()
    assert not decoded
    assert (tmp_path / "l.parquet").read_bytes() == before
    assert [loaded.entries[key].record.parts["part"] for key in ("key 1", "key 1", "key 3", "key 1")] == ["a"] * 4
    assert len(decoded) == 3


def test_a_record_that_was_read_serves_as_any_other(tmp_path):
    some(tmp_path / "l.parquet").save()
    record = Ledger.load(tmp_path / "l.parquet").entries["key 0"].record
    assert record == Record({"part": "a"}, {"part": "b"}, {"fact": 1}) != Record({"part": "a"}, {"part": "c"})
    assert record.lacks(Item("key 0", {"part": "a", "other": "x"})) == {"other"}
    assert record.of(Item("key 0", {})) == Record({}, {}, {"fact": 1})
    assert "fact" in repr(record)


def test_records_are_held_as_they_lie_on_disk_in_less_than_half_the_memory(tmp_path):
    made = [of_ten_sets(at) for at in range(5 * tables.BLOCK // 2)]
    kept = Ledger(tmp_path / "l.parquet")
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    stored = [kept.stored(record) for record in made]
    taken = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow
    tracemalloc.stop()
    tracemalloc.start()
    again = [of_ten_sets(at) for at in range(len(made))]
    plain = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert stored == made == again
    assert kept.stored(stored[5]) is stored[5]
    assert taken < plain / 2
    kept.entries = {f"{at}": Entry("", record) for at, record in enumerate(stored)}
    kept.save()
    assert [entry.record for entry in Ledger.load(kept.path).entries.values()] == made


def test_a_record_that_is_no_json_leaves_the_others_as_they_were(tmp_path):
    kept = Ledger(tmp_path / "l.parquet")
    with pytest.raises(TypeError):
        kept.stored(Record({"part": "a"}, {"part": {1, 2}}))
    assert kept.stored(of_ten_sets(1)) == of_ten_sets(1)


def of_ten_sets(at):
    names = [f"{number:04d}/{kind}" for number in range(10) for kind in ("logits", "maps")]
    parts, contents = ({name: digest([name, at, of]) for name in names} for of in ("parts", "contents"))
    summary = {f"{number:04d}": {"k_pairs": number, "image_digest": digest([number, at])} for number in range(10)}
    return Record(parts, contents, summary)


@pytest.mark.parametrize("harm", [cut, lambda path: flip(path, at=400), lambda path: path.write_bytes(b"")])
def test_a_ledger_that_cannot_be_read_is_an_empty_one(tmp_path, harm):
    kept = some(tmp_path / "l.parquet", n=500)
    kept.save()
    harm(kept.path)
    assert Ledger.load(kept.path) == Ledger(kept.path)


def test_a_ledger_whose_rows_are_no_json_is_an_empty_one(tmp_path):
    path = tmp_path / "l.parquet"
    frame = pd.DataFrame([("key", "", "{", "{}", "{}")], columns=ledger.SCHEMA.names)
    tables.write_table(path, frame, ledger.SCHEMA, {"version": 1, "complete": True, "data_version": "v"})
    assert Ledger.load(path) == Ledger(path)


def test_a_newer_ledger_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "VERSION", 2)
    some(tmp_path / "l.parquet").save()
    monkeypatch.setattr(ledger, "VERSION", 1)
    with pytest.raises(files.NewerFormat, match="Upgrade"):
        Ledger.load(tmp_path / "l.parquet")
