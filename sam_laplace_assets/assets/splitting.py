"""How the settings turn rows into splits: groups, official splits, and one image content in one split only."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sam_laplace_assets.domain.manifest import PARTITION_ROLES, Candidate, assign_splits, straddling_units
from sam_laplace_assets.settings import DataSettings, SettingsError
from sam_laplace_assets.storage.manifest import Assignment, Assignments, Place, Row, read_rows
from sam_laplace_assets.storage.project import SplitRoots, named_splits, roots_of
from sam_laplace_assets.storage.store import NotMade

if TYPE_CHECKING:
    import pandas as pd

Group = Callable[[str], str]
REASONS = 10


class NoValidSample(ValueError):
    """Nothing that was found can be used."""


def assign_base_splits(
    rows: Sequence[Row], kept: Assignments, data: DataSettings, place: Place
) -> tuple[Sequence[Row], Assignments]:
    """Today's rows with their split, and what is to be remembered.

    Raises:
        NoValidSample: no sample can be used.
    """
    rows = refuse_content_of_other_splits(rows, "", data, place)
    require_usable(rows, roots_of(data, "train"), asset="all_samples")
    if data.splits_file is not None:
        return _take_official(rows, data.splits_file, kept)
    group = grouping(data)
    today = [_candidate(row, group) for row in rows if row["valid"]]
    gone = [Candidate(key, key.rpartition("/")[0], group(key), one.image_digest) for key, one in kept.items()]
    drawn = assign_splits(today, {key: one.split for key, one in kept.items()}, split_seed=data.split_seed,
                          vanished=gone)  # fmt: skip
    return _with_splits(rows, drawn), _remember(rows, drawn, kept)


def refuse_content_of_other_splits(rows: Sequence[Row], split: str, data: DataSettings, place: Place) -> list[Row]:
    """Rows, those refused whose image stands in a split that was made earlier."""
    elsewhere = _content_of_other_splits(split, data, place)
    return [_refuse(row, elsewhere[row["image_digest"]]) if row["valid"] and row["image_digest"] in elsewhere else row
            for row in rows]  # fmt: skip


def require_usable(rows: Sequence[Row], roots: SplitRoots, *, asset: str) -> None:
    """Refuse rows of which not one is a sample.

    Raises:
        NoValidSample: names the asset, what was found and the first reasons.
    """
    if any(row["valid"] for row in rows):
        return
    reasons = [f"  {row['image_path'] or row['mask_path']}: {row['reason']}" for row in rows[:REASONS]]
    more = [f"  and {len(rows) - REASONS} more"] if len(rows) > REASONS else []
    head = (
        f"0 of {len(rows)} files or pairs found below {roots.images_root} and {roots.masks_root} can be used. A sample "
        "is an image <class>/<stem>.jpg, .jpeg or .png with a mask <class>/<stem>.npy or .png. Add samples or mend "
        f"what was refused, then materialise {asset} again."
    )
    raise NoValidSample("\n".join([head, *reasons, *more]))


def grouping(data: DataSettings) -> Group:
    """sample_id -> what stays in one split with it; empty for a sample of its own.

    Raises:
        SettingsError: `data.group_by` is no regular expression, or its table has no such column.
    """
    if data.group_by is None:
        return lambda sample_id: ""
    file, _, column = data.group_by.rpartition(":")
    if file.endswith(".csv"):
        table = _read_csv(Path(file), ("sample_id", column), key="data.group_by")
        groups = dict(zip(table["sample_id"], table[column], strict=True))
        return lambda sample_id: str(groups.get(sample_id, ""))
    try:
        pattern = re.compile(data.group_by)
    except re.error as error:
        raise SettingsError(f"data.group_by is no regular expression: {data.group_by!r} ({error}).") from error
    return lambda sample_id: _match(pattern, sample_id)


def _match(pattern: re.Pattern[str], sample_id: str) -> str:
    found = pattern.search(sample_id)
    if found is None:
        return ""
    return "/".join(part or "" for part in found.groups()) if found.groups() else found.group()


def _take_official(rows: Sequence[Row], splits_file: Path, kept: Assignments) -> tuple[Sequence[Row], Assignments]:
    table = _read_csv(splits_file, ("sample_id", "split"), key="data.splits_file")
    if twice := sorted(table["sample_id"][table["sample_id"].duplicated()].unique()):
        raise SettingsError(f"{splits_file} lists {len(twice)} samples more than once, such as {twice[0]}. Keep one.")
    official = dict(zip(table["sample_id"], table["split"], strict=True))
    if unknown := sorted(set(official.values()) - set(PARTITION_ROLES)):
        raise SettingsError(f"{splits_file} names splits {unknown}: only {', '.join(PARTITION_ROLES)} are known here.")
    listed = [_refuse_unlisted(row, splits_file) if row["sample_id"] not in official else row for row in rows]
    first: dict[str, tuple[str, str]] = {}
    taken = [_refuse_repeated(row, official, first) for row in listed]
    drawn = {str(row["sample_id"]): official[row["sample_id"]] for row in taken if row["valid"]}
    return _with_splits(taken, drawn), _remember(taken, drawn, kept)


def _refuse_unlisted(row: Row, splits_file: Path) -> Row:
    reason = row["reason"] or f"not listed in {splits_file.name}"
    return {**row, "valid": False, "reason": reason}


def _refuse_repeated(row: Row, official: Mapping[str, str], first: dict[str, tuple[str, str]]) -> Row:
    """One image content stands in one split: the first sample that has it decides."""
    if not row["valid"]:
        return row
    sample, split = first.setdefault(row["image_digest"], (row["sample_id"], official[row["sample_id"]]))
    return row if split == official[row["sample_id"]] else _refuse(row, (sample, split))


def _refuse(row: Row, holder: tuple[str, str]) -> Row:
    sample, split = holder
    reason = f"its image is that of {sample}, which stands in split {split}; remove one of the two"
    return {**row, "valid": False, "reason": reason}


def _content_of_other_splits(split: str, data: DataSettings, place: Place) -> dict[str, tuple[str, str]]:
    """image digest -> (sample, split) of the other named splits; a named split sees the base ones too."""
    named = [name for name in named_splits(data) if name != split]
    held: dict[str, tuple[str, str]] = {}
    for name in ["all_samples", *named] if split else named:
        for row in _rows_or_none(place, name):
            if row["valid"]:
                held.setdefault(row["image_digest"], (row["sample_id"], row["split"]))
    return held


def _rows_or_none(place: Place, name: str) -> Sequence[Row]:
    try:
        return read_rows(place, name)
    except NotMade:
        return []


def groups_in_two_splits(rows: Sequence[Row], data: DataSettings) -> list[str]:
    """Groups of `data.group_by`, and doubles, whose samples stand in several splits, as text."""
    group = grouping(data)
    valid = [row for row in rows if row["valid"]]
    splits = {str(row["sample_id"]): str(row["split"]) for row in valid}
    torn = straddling_units([_candidate(row, group) for row in valid], splits)
    return [", ".join(f"{one.sample_id} ({splits[one.sample_id]})" for one in unit) for unit in torn]


def _candidate(row: Row, group: Group) -> Candidate:
    return Candidate(row["sample_id"], row["class"], group(row["sample_id"]), row["image_digest"])


def _with_splits(rows: Sequence[Row], drawn: Mapping[str, str]) -> list[Row]:
    return [{**row, "split": drawn[row["sample_id"]]} if row["valid"] else row for row in rows]


def _remember(rows: Sequence[Row], drawn: Mapping[str, str], kept: Assignments) -> Assignments:
    digests = {row["sample_id"]: row["image_digest"] for row in rows if row["valid"]}
    known = {key: one.image_digest for key, one in kept.items()} | digests
    return {key: one for key, one in kept.items() if key not in drawn} | {
        key: Assignment(split, known[key]) for key, split in drawn.items()
    }


def _read_csv(path: Path, columns: tuple[str, ...], *, key: str) -> "pd.DataFrame":
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{key} names {path}, which cannot be read as CSV: {error}") from error
    if lacking := [column for column in columns if column not in table]:
        raise SettingsError(f"{key} names {path}, which has columns {list(table)}; it lacks {lacking}.")
    return table.dropna(subset=list(columns))
