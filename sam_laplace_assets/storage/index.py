"""The training index of one split: a row a (sample, prompt set), in the order of the pack. version 2

The columns of `SCHEMA`. `logits_256_path`, `pos_map_path` and `neg_map_path` are relative to the project root,
`image_path` and `mask_path` to their roots; the digests are those of the content that the row stands for. `n_pos` and
`n_neg` are numbers of points, since version 2; `k_pairs` is the smaller one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sam_laplace_assets.domain.plan import Item, Record
from sam_laplace_assets.storage import tables
from sam_laplace_assets.storage.store import NotMade, OneItemStore

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2
PART = "table"
NUMBERS = ("k_pairs", "n_pos", "n_neg")
SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()), ("safe_id", pa.string()), ("split", pa.string()), ("promptset_id", pa.int64()),
        ("image_path", pa.string()), ("image_h", pa.int64()), ("image_w", pa.int64()), ("mask_path", pa.string()),
        ("logits_256_path", pa.string()), ("pos_map_path", pa.string()), ("neg_map_path", pa.string()),
        ("k_pairs", pa.int64()), ("n_pos", pa.int64()), ("n_neg", pa.int64()),
        ("image_digest", pa.string()), ("mask_digest", pa.string()),
        ("logits_256_sha256", pa.string()), ("pos_map_sha256", pa.string()), ("neg_map_sha256", pa.string()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class TrainingIndex:
    """The rows of one split, and the roots that their paths are relative to."""

    split: str
    frame: "pd.DataFrame"
    masks_root: Path
    project_root: Path
    complete: bool


class IndexStore(OneItemStore):
    """One index table; its note holds the record."""

    def __init__(self, stem: Path, table_format: tables.Format) -> None:
        self._path = tables.path_of(stem, table_format)

    def locate(self, item: Item) -> Path:
        """The table."""
        return self._path

    def records(self, items: Any) -> dict[str, Record]:
        """The record that the table's note holds."""
        note = tables.read_note(self._path, version=VERSION)
        if note is None or note["version"] < VERSION:
            return {}
        record = Record({PART: note["provenance"]}, {PART: note["data_version"]}, note["summary"])
        return {item.key: record for item in items}

    def write(self, item: Item, parts: frozenset[str], value: pa.Table) -> Record:
        """Write the table; the item's source is the digest over its rows and whether these are all."""
        rows_digest, complete = item.source
        summary = summarise(value)
        note = {"format": "training_index", "version": VERSION, "complete": complete, "summary": summary}
        note |= {"provenance": item.parts[PART], "data_version": rows_digest}
        tables.write_table(self._path, value, SCHEMA, note)
        return Record(item.parts, {PART: rows_digest}, summary)


def summarise(table: pa.Table) -> dict[str, float]:
    """Rows, unique samples and mean numbers of pairs, positive and negative points."""
    import pyarrow.compute as pc

    means = {f"mean_{name}": round(pc.mean(table[name]).as_py() or 0.0, 3) for name in NUMBERS}
    return {"rows": len(table), "samples": pc.count_distinct(table["safe_id"]).as_py(), **means}


def read_index(stem: Path, table_format: tables.Format, *, split: str) -> "tuple[pd.DataFrame, bool]":
    """The rows of a split's index, and whether they are all of them.

    Raises:
        NotMade: it was never made.
        TableRefused: it is of an older version, or not whole.
    """
    path = tables.path_of(stem, table_format)
    return tables.of_one_writing(path, lambda: _read(path, split=split))


def _read(path: Path, *, split: str) -> "tuple[pd.DataFrame, bool]":
    note = tables.read_note(path, version=VERSION)
    if note is None:
        raise NotMade(f"{path.name} is not there. Materialise training_index[{split}] first.")
    if note["version"] < VERSION:
        raise tables.TableRefused(
            f"{path} has format version {note['version']}, without numbers of positive and negative points. "
            f"Materialise training_index[{split}] again; SAM is not asked for it."
        )
    return tables.read_table(path, SCHEMA), bool(note["complete"])
