"""Tables of `active_prompting`, in its report `reports/active_prompting/<split>/`; the format is that of reports.py.

clicks        a row a click: whose (sample, strategy, seed), its number from 1, x and y at 256x256, its label, and the
              IoU of the head's mask and of SAM's after it
curves        mean IoU after each click, of the head's mask or SAM's (`source`), with its interval over images
summary       what each strategy comes to: area under the curve, clicks to reach an IoU (a miss counts 20), shares that
              reached it, and where its clicks lie
differences   each strategy minus each of the rivals, paired by image: mean and interval

samples/<safe_id>.json   as in reports.py, but `provenance` and `found` have an entry a run, `<strategy>/<seed>`:
                         points, positive, head_iou and sam_iou; so another strategy or seed is added beside the others
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from sam_laplace_assets.domain.interaction import THRESHOLDS
from sam_laplace_assets.domain.plan import Item, Record, digest
from sam_laplace_assets.storage import files, reports
from sam_laplace_assets.storage.reports import SampleReportStore, read_sample

ASSET = "active_prompting"
_NAMES = [f"{100 * threshold:g}" for threshold in THRESHOLDS]
CLICKS = pa.schema(
    [
        ("sample_id", pa.string()), ("class", pa.string()), ("strategy", pa.string()), ("seed", pa.int64()),
        ("click", pa.int64()), ("x", pa.int64()), ("y", pa.int64()), ("positive", pa.bool_()),
        ("head_iou", pa.float64()), ("sam_iou", pa.float64()),
    ]
)  # fmt: skip
CURVES = pa.schema(
    [
        ("strategy", pa.string()), ("source", pa.string()), ("click", pa.int64()), ("mean_iou", pa.float64()),
        ("low", pa.float64()), ("high", pa.float64()),
    ]
)  # fmt: skip
SUMMARY = pa.schema(
    [
        ("strategy", pa.string()), ("source", pa.string()), ("area", pa.float64()), ("low", pa.float64()),
        ("high", pa.float64()), *((f"noc{name}", pa.float64()) for name in _NAMES),
        *((f"reached{name}", pa.float64()) for name in _NAMES), ("final_iou", pa.float64()),
        ("spacing", pa.float64()), ("near_earlier", pa.float64()), ("at_border", pa.float64()),
        ("positive", pa.float64()),
    ]
)  # fmt: skip
DIFFERENCES = pa.schema(
    [
        ("strategy", pa.string()), ("against", pa.string()), ("source", pa.string()), ("metric", pa.string()),
        ("difference", pa.float64()), ("low", pa.float64()), ("high", pa.float64()), ("n_images", pa.int64()),
    ]
)  # fmt: skip
TABLES = {"clicks": CLICKS, "curves": CURVES, "summary": SUMMARY, "differences": DIFFERENCES}


class ClickStore(SampleReportStore):
    """The experiment on one split: an item is a sample, its parts are runs, its value what each run did."""

    def read_record(self, key: str) -> Record | None:
        """What is known of a sample's file, if it is whole."""
        found = read_sample(self._file(key))
        return None if found is None else _record(found)

    def write_files(self, item: Item, parts: frozenset[str], value: Mapping[str, Any]) -> Record:
        """Write what some runs did beside what the file holds of the others."""
        there = read_sample(self._file(item.key)) or {"found": {}, "provenance": {}}
        found = {**there["found"], **value}
        provenance = {**there["provenance"], **{part: item.parts[part] for part in parts}}
        content = {"format": f"{ASSET}_sample", "version": reports.VERSION, "provenance": provenance,
                   "digest": digest(found), "found": found}  # fmt: skip
        files.write_json(self._file(item.key), content)
        return _record(content)


def _record(sample: Mapping[str, Any]) -> Record:
    return Record(sample["provenance"], {part: digest(found) for part, found in sample["found"].items()})
