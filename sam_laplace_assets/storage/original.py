"""A project root of the original scripts, read and never written: their CSV, JSON, .npy and meta.json files.

manifests/<split>.csv                                     sample_id of each sample of a split
prompt_sets/<split>/<safe_id>.json                        points of each prompt set, in original pixels
sam_precompute/<split>/<safe_id>/promptset_NNNN/          logits_256.npy, pos_map.npy, neg_map.npy, meta.json

Where such a file has been replaced by one of ours, the original's lies below `original/`, under the same name.
"""

import csv
import tokenize
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam_laplace_assets.domain.manifest import PARTITION_ROLES
from sam_laplace_assets.domain.prompts import Point, PromptSet
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.sam import parse_array, set_name

ASIDE = "original"
READ_UP_TO = 1
"""Version of the original's files that is known; they name none."""

# under which names the same thing is looked for
SETS = ("prompt_sets", "promptsets")
POINTS = ("points", "points_original", "original_points", "original")
SIDES = {side: (side, f"{side}_points", long, f"{long}_points", f"{side}_points_original", f"{side}_original")
         for side, long in (("pos", "positive"), ("neg", "negative"))}  # fmt: skip
NUMBERS = ("promptset_id", "prompt_set_id", "id")
BRANCHES = ("branch", "branch_index", "branch_idx", "best_branch", "mask_index")
SIGMAS = ("sigma", "gaussian_sigma")
IOUS = ("predicted_ious", "iou_predictions")
MADE_WITH = {"model_type": ("model_type", "sam_model_type"), "checkpoint": ("checkpoint", "sam_checkpoint"),
             "checkpoint_sha256": ("checkpoint_sha256", "sam_checkpoint_sha256")}  # fmt: skip
# what damaged .npy files make NumPy raise
_DAMAGE = (OSError, ValueError, LookupError, TypeError, SyntaxError, EOFError, MemoryError, tokenize.TokenError)


class NotOriginal(ValueError):
    """A folder is no project root of the original scripts."""


class NotTaken(ValueError):
    """A file of the original cannot be taken over; the text says why."""


@dataclass(frozen=True)
class SaidOfSet:
    """What a meta.json of the original says.

    Attributes:
        points: the points that SAM was asked with, in original pixels.
        branch: index of the branch that was chosen; None where it is not said.
        sigma: of the maps; None where it is not said.
        predicted_ious: of the branches; None where they are not said.
        made_with: model_type, checkpoint, checkpoint_sha256, as far as they are said.
    """

    points: PromptSet
    branch: int | None = None
    sigma: float | None = None
    predicted_ious: tuple[float, ...] | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Original:
    """The project root of the original scripts."""

    root: Path

    def path(self, *parts: str) -> Path:
        """Where a file of the original lies now: put aside, or at its place."""
        aside = self.root.joinpath(ASIDE, *parts)
        return aside if aside.exists() else self.root.joinpath(*parts)

    def splits(self) -> dict[str, str]:
        """sample_id -> split, of all samples.

        Raises:
            NotOriginal: there are no manifests, or a sample stands in two of them.
        """
        found = {split: self.path("manifests", f"{split}.csv") for split in PARTITION_ROLES}
        there = {split: path for split, path in found.items() if path.exists() and not _is_table_of_ours(path)}
        if not there:
            raise NotOriginal(
                f"{self.root} holds no manifests/train.csv, val.csv or test.csv of the original scripts. Give the "
                "folder that their config.yaml names as data.project_root."
            )
        splits: dict[str, str] = {}
        for split, path in there.items():
            for name in _sample_ids(path):
                if splits.setdefault(name, split) != split:
                    raise NotOriginal(f"{path} lists {name}, which {splits[name]}.csv lists, too. Remove it from one.")
        return splits

    def prompts_file(self, split: str, key: str) -> Path:
        """The JSON file of a sample's prompt sets."""
        return self.path("prompt_sets", split, f"{key}.json")

    def prompt_sets(self, split: str, key: str, *, size: tuple[int, int]) -> tuple[PromptSet, ...]:
        """The prompt sets of a sample whose image has this (H, W).

        Raises:
            NotTaken: there is no such file, it is damaged, or it is of an image of another size.
            NewerFormat: it is of a newer version.
        """
        path = self.prompts_file(split, key)
        document = _document(path)
        listed = document if isinstance(document, list) else _said(document, SETS)
        if not isinstance(listed, list) or not listed:
            raise NotTaken(f"{path.name} lists no prompt sets")
        if isinstance(document, dict):
            _require_size(document, size, path)
        return tuple(_set_of(one, at, path) for at, one in enumerate(listed))

    def set_folder(self, split: str, key: str, promptset_id: int) -> tuple[str, ...]:
        """Where a prompt set's outputs lie, as names below the root."""
        return ("sam_precompute", split, key, set_name(promptset_id))

    def said(self, split: str, key: str, promptset_id: int) -> SaidOfSet:
        """What meta.json says of a prompt set. Raises `NotTaken` or `NewerFormat`."""
        path = self.path(*self.set_folder(split, key, promptset_id), "meta.json")
        document = _document(path)
        if not isinstance(document, dict) or document.get("format") == "sam_cache":
            raise NotTaken("its meta.json is not one of the original scripts")
        branch, sigma, ious = (_said(document, names) for names in (BRANCHES, SIGMAS, IOUS))
        made_with = {name: _said(document, names) for name, names in MADE_WITH.items()}
        try:
            return SaidOfSet(
                _set_of(document, promptset_id, path), None if branch is None else int(branch),
                None if sigma is None else float(sigma), None if ious is None else tuple(float(one) for one in ious),
                {name: str(value) for name, value in made_with.items() if value is not None},
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise NotTaken(f"its meta.json cannot be read ({error})") from error

    def array(self, split: str, key: str, promptset_id: int, name: str) -> tuple[Path, np.ndarray, str]:
        """Path, content and SHA-256 of an array file. Raises `NotTaken`."""
        path = self.path(*self.set_folder(split, key, promptset_id), f"{name}.npy")
        try:
            content = path.read_bytes()
            return path, parse_array(content), files.sha256(content)
        except FileNotFoundError as error:
            raise NotTaken(f"its {path.name} is not there") from error
        except _DAMAGE as error:
            raise NotTaken(f"its {path.name} is damaged ({error})") from error

    def runs(self) -> list[str]:
        """Trained heads and fitted posteriors, as paths below the root."""
        found = [path for name in ("checkpoints", "laplace") for path in (self.root / name / "no_image").glob("run_*")]
        return sorted(path.relative_to(self.root).as_posix() for path in found if not _is_run_of_ours(path))


def _is_table_of_ours(path: Path) -> bool:
    """Whether a CSV has our note beside it."""
    return path.with_name(f"{path.name}.json").exists()


def _is_run_of_ours(path: Path) -> bool:
    """Whether the JSON that completes a run names a format of ours."""
    for name in ("epoch_state.json", "posterior_meta.json"):
        try:
            return "format" in files.read_json(path / name)
        except (OSError, ValueError, TypeError):
            continue
    return False


def _sample_ids(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "sample_id" not in (reader.fieldnames or ()):
                raise NotOriginal(f"{path} has no column sample_id: its columns are {reader.fieldnames}.")
            return [unicodedata.normalize("NFC", row["sample_id"]) for row in reader if row["sample_id"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise NotOriginal(f"{path} cannot be read as CSV ({error}). Mend it.") from error


def _document(path: Path) -> Any:
    """The JSON value of a file of the original."""
    try:
        document = files.read_json(path)
    except FileNotFoundError as error:
        raise NotTaken(f"its {path.name} is not there") from error
    except (OSError, ValueError) as error:
        raise NotTaken(f"its {path.name} is not JSON") from error
    version = _said(document, ("version", "format_version")) if isinstance(document, dict) else None
    if isinstance(version, int | float):
        files.refuse_newer(path, version, version=READ_UP_TO)
    return document


def _said(document: Mapping[str, Any], names: Iterable[str]) -> Any:
    """What a document says under the first of these names that it has; None where it has none."""
    return next((document[name] for name in names if document.get(name) is not None), None)


def _require_size(document: Mapping[str, Any], size: tuple[int, int], path: Path) -> None:
    said = tuple(document.get(name) for name in ("image_h", "image_w"))
    if None not in said and said != size:
        raise NotTaken(f"{path.name} is about an image of {said[0]} x {said[1]} pixels (H x W), this one has "
                       f"{size[0]} x {size[1]}")  # fmt: skip


def _set_of(value: Any, at: int, path: Path) -> PromptSet:
    """A prompt set that a JSON value holds; one that has no number is the `at`-th."""
    try:
        number = _said(value, NUMBERS)
        number = at if number is None else int(str(number).rpartition("_")[2])
        pos, neg = (_points(_side(value, side)) for side in ("pos", "neg"))
        return PromptSet(number, pos, neg)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NotTaken(f"{path.name} holds no points of pos and neg as [[x, y], ...] ({error})") from error


def _side(value: Mapping[str, Any], side: str) -> Any:
    for holder in (value, _said(value, POINTS)):
        if isinstance(holder, Mapping):
            found = next((holder[name] for name in SIDES[side] if name in holder), None)
            if found is None and isinstance(inner := _said(holder, POINTS), Mapping):
                found = next((inner[name] for name in SIDES[side] if name in inner), None)
            if found is not None:
                return found
    raise KeyError(side)


def _points(values: Any) -> tuple[Point, ...]:
    pairs = [(float(x), float(y)) for x, y in values]
    if any(not (x.is_integer() and y.is_integer()) for x, y in pairs):
        raise ValueError("points are not whole pixels")
    return tuple((int(x), int(y)) for x, y in pairs)
