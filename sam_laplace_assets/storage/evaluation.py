"""The tables of an evaluation, in `reports/evaluation/<split>/`; the folder's format is in reports.py.

rows            a row a (prompt set, method): scores of that prompt set's pixels; null where there is none
metrics         a row a (method, scope, metric): pooled over pixels or a mean over images, over the image or in the band
by_class        means over images by class; by_k_pairs by the number of pairs, or of clicks where there are no pairs
differences     ours minus theirs, a mean over images, paired
reliability     a row a (method, region, bin that holds pixels)
risk_coverage   a row a (method, region, uncertainty, coverage)

`low` and `high` are ends of bootstrap intervals over images (or the groups of data.group_by), null where there is none;
`bound` is what the histogram that a pooled value was read from may have changed; `images_left_out` have no value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sam_laplace_assets.storage.manifest import Sample
from sam_laplace_assets.storage.pack import Pack, PackRefused, open_pack
from sam_laplace_assets.storage.tables import Format

if TYPE_CHECKING:
    import pandas as pd

    from sam_laplace_assets.domain.method_scores import MethodScores

ASSET = "evaluation"
PLAIN = ("iou", "dice", "nll", "brier", "ece", "adaptive_ece")
RANKED = tuple(f"{area}_{name}" for name in ("entropy", "mutual_information", "variance") for area in ("auroc", "aurc"))
SCORES = tuple(prefix + name for prefix in ("", "band_") for name in ("pixels", *PLAIN, *RANKED))


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema(list(columns.items()))


_WORD, _COUNT, _NUMBER = pa.string(), pa.int64(), pa.float64()
_FOUND = {"scope": _WORD, "metric": _WORD, "value": _NUMBER, "low": _NUMBER, "high": _NUMBER, "n_images": _COUNT,
          "images_left_out": _COUNT}  # fmt: skip
_NAMES = {"sample_id": _WORD, "safe_id": _WORD, "class": _WORD, "promptset_id": _COUNT, "k_pairs": _COUNT,
          "n_pos": _COUNT, "n_neg": _COUNT, "method": _WORD}  # fmt: skip
TABLES = {
    "rows": _schema(**_NAMES, **dict.fromkeys(SCORES, _NUMBER)),
    "metrics": _schema(method=_WORD, **_FOUND, bound=_NUMBER),
    "by_class": _schema(**{"class": _WORD}, method=_WORD, **_FOUND),
    "by_k_pairs": _schema(k_pairs=_COUNT, clicks=_COUNT, method=_WORD, **_FOUND),
    "differences": _schema(ours=_WORD, theirs=_WORD, **_FOUND, n_units=_COUNT, ours_is=_WORD),
    "reliability": _schema(method=_WORD, region=_WORD, bin_low=_NUMBER, bin_high=_NUMBER, mean_probability=_NUMBER,
                           frequency=_NUMBER, pixels=_COUNT),
    "risk_coverage": _schema(method=_WORD, region=_WORD, uncertainty=_WORD, coverage=_NUMBER, risk=_NUMBER),
}  # fmt: skip


@dataclass(frozen=True)
class RowNames:
    """What the rows of a pack are of.

    Attributes:
        sample_ids: (I,) of the pack's samples, in order.
        safe_ids: (I,) the same as file names.
        images: (N,) which sample a row belongs to.
        promptset_id, n_pos, n_neg: (N,) of each row.
    """

    sample_ids: tuple[str, ...]
    safe_ids: tuple[str, ...]
    images: np.ndarray
    promptset_id: np.ndarray
    n_pos: np.ndarray
    n_neg: np.ndarray

    @classmethod
    def of(cls, pack: Pack, samples: Mapping[str, Sample]) -> "RowNames":
        """Of the rows of a pack; a sample that the manifest (safe_id -> sample) lacks is named by its safe_id.

        Raises:
            PackRefused: another pack has taken its place since it was opened.
        """
        with open_pack(pack.path) as file:
            if file.attrs["data_version"] != pack.data_version:
                raise PackRefused(f"{pack.path} was replaced after it was opened by this run. Run again.")
            promptset_id = file["promptset_id"][:]
        return cls(sample_ids(pack, samples), pack.safe_ids, pack.images, promptset_id, pack.n_pos, pack.n_neg)

    @property
    def classes(self) -> np.ndarray:
        """(N,) class of each row's sample: its folder."""
        classes: np.ndarray = np.array([one.rpartition("/")[0] for one in self.sample_ids])[self.images]
        return classes

    def columns(self) -> dict[str, Any]:
        """Columns that name the rows, (N,) each."""
        balanced = np.where(self.n_pos == self.n_neg, self.n_pos, -1)
        return {"sample_id": np.array(self.sample_ids)[self.images], "safe_id": np.array(self.safe_ids)[self.images],
                "class": self.classes, "promptset_id": self.promptset_id,
                "k_pairs": [None if k < 0 else k for k in balanced.tolist()],
                "n_pos": self.n_pos, "n_neg": self.n_neg}  # fmt: skip


def sample_ids(pack: Pack, samples: Mapping[str, Sample]) -> tuple[str, ...]:
    """Sample ids of a pack's samples, in order."""
    return tuple(samples[key].sample_id if key in samples else key.replace("__", "/") for key in pack.safe_ids)


def rows_table(scores: "Mapping[str, MethodScores]", names: RowNames) -> "pd.DataFrame":
    """The table `rows`: each method's rows in the order of the pack."""
    import pandas as pd

    found = [pd.DataFrame({**names.columns(), "method": method, **_score_columns(one)})
             for method, one in scores.items()]  # fmt: skip
    return pd.concat(found, ignore_index=True)


def _score_columns(scores: "MethodScores") -> dict[str, np.ndarray]:
    """Every score of the schema, (N,) each; NaN, which becomes null, where a row has none."""
    columns, absent = scores.columns(), np.full(len(scores.rows), np.nan)
    return {name: np.where(columns[name].present, columns[name].values, np.nan) if name in columns else absent
            for name in SCORES}  # fmt: skip


def frame_of(table: str, rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Rows as a frame with the columns of a table."""
    import pandas as pd

    return pd.DataFrame(list(rows), columns=TABLES[table].names, dtype=object)


def read_tables(folder: Path, table_format: Format) -> "dict[str, pd.DataFrame]":
    """The tables of an evaluation that is there. Raises `TableRefused`."""
    from sam_laplace_assets.storage import tables

    return {name: tables.read_table(tables.path_of(folder / name, table_format), schema)
            for name, schema in TABLES.items()}  # fmt: skip
