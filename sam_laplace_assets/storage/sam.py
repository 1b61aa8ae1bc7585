"""What frozen SAM says of one prompt set, as a folder `<safe_id>/promptset_NNNN/`. version 1

logits_256.npy  (256, 256) float16, SAM's logits of the chosen branch; the SAM mask is `logits_256 > 0`
pos_map.npy     (256, 256) float16, Gaussians around the positive points, in [0, 1]
neg_map.npy     (256, 256) float16, the same for the negative points
meta.json       written last: points (original and 256 pixels), branch, predicted IoUs, sigma, dtypes, logits_size,
                SHA-256 of each array file, and the provenance of logits and of maps

`k_pairs` is the smaller one of the numbers of positive and negative points; the ledger's summary has all three.
A part (`NNNN/logits`, `NNNN/maps`) whose files do not have the SHA-256 that meta.json names is not there. A sample's
folder may hold `embedding.safetensors` of embeddings.py, too.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.plan import Item, Record, digest
from sam_laplace_assets.storage import embeddings, files
from sam_laplace_assets.storage.store import FileStore, listing

VERSION = 1
ARRAYS = {"logits": ("logits_256",), "maps": ("pos_map", "neg_map")}
NAMES = {"meta.json", *(f"{array}.npy" for part in ARRAYS.values() for array in part)}
HEADER = files.npy_header((LOW_RES, LOW_RES), np.dtype(np.float16))
"""What a .npy file of the cache begins with."""
Provenance = Mapping[str, Any]


@dataclass(frozen=True)
class SetOutput:
    """What was made for one prompt set.

    Attributes:
        promptset_id: which one.
        arrays: array name -> (256, 256) float16, of the parts that were made.
        facts: what meta.json says beside them.
        provenance: part -> provenance, of the parts that were made.
    """

    promptset_id: int
    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    provenance: Mapping[str, Provenance]


@dataclass(frozen=True)
class SampleOutput:
    """What was made for one sample: its prompt sets, and the file of its embedding where that is kept."""

    sets: Sequence[SetOutput]
    embedding: bytes | None = None


@dataclass(frozen=True)
class CachedSet:
    """One prompt set of the cache, as the ledger knows it; paths are relative to the cache's split folder."""

    key: str
    promptset_id: int
    k_pairs: int
    n_pos: int
    n_neg: int
    sha256: Mapping[str, str]
    image_digest: str

    @property
    def in_words(self) -> str:
        """`3 pairs`, or `4 positive, 1 negative points`."""
        if self.n_pos == self.n_neg:
            return f"{self.k_pairs} pairs"
        return f"{self.n_pos} positive, {self.n_neg} negative points"

    def path(self, array: str) -> str:
        """Where an array file lies below the split's folder."""
        return f"{self.key}/{set_name(self.promptset_id)}/{array}.npy"


@dataclass(frozen=True)
class SamCache:
    """The cache of one split: what the ledger says is there."""

    folder: Path
    records: Mapping[str, Record]
    complete: bool

    @classmethod
    def open(cls, folder: Path, *, split: str) -> "SamCache":
        """The cache in `folder`. Raises `NotMade` if it was never made."""
        ledger = listing(ledger_path(folder), name=f"sam_cache[{split}]")
        return cls(folder, {key: entry.record for key, entry in ledger.entries.items()}, ledger.complete)

    def sets(self, key: str) -> Iterator[CachedSet]:
        """The prompt sets of one sample, in order."""
        contents, summary = self.records[key].contents, self.records[key].summary  # decoded once, when asked for
        for name in sorted({part.split("/")[0] for part in contents}):
            pos, neg = contents[f"{name}/maps"].split("+")
            sha256 = {"logits_256": contents[f"{name}/logits"], "pos_map": pos, "neg_map": neg}
            facts = summary[name]
            yield CachedSet(key, int(name), *_numbers_of_points(facts), sha256, facts["image_digest"])


class SamStore(FileStore):
    """The cache of one split; an item is a sample, its value the outputs of the prompt sets that were made."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ledger_path(folder))
        self._folder = folder

    def locate(self, item: Item) -> Path:
        """The sample's folder."""
        return self._folder / item.key

    def signature(self, key: str) -> str:
        """Names, sizes and times of all files of a sample."""
        try:
            return digest(sorted(_entries(self._folder / key)))
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def read_record(self, key: str) -> Record | None:
        """The record of a sample: the parts whose files are whole, by their SHA-256."""
        found = [_whole_meta(folder) for folder in sorted((self._folder / key).glob("promptset_*"))]
        metas = [meta for meta in found if meta is not None]
        return _record(metas) if metas else None

    def write_files(self, item: Item, parts: frozenset[str], value: SampleOutput) -> Record:
        """Write the embedding and the arrays that were made, each set's meta.json after its arrays."""
        contents: dict[Path, bytes] = {}
        if value.embedding is not None:
            contents[self._folder / item.key / embeddings.NAME] = value.embedding
        metas: dict[str, Mapping[str, Any]] = {}
        for output in value.sets:
            folder = self._folder / item.key / set_name(output.promptset_id)
            arrays, meta = _encode(folder, item.key, output)
            contents |= arrays | {folder / "meta.json": files.compact_json_bytes(files.sealed(meta))}
            metas[folder.name] = meta
        files.write_set(contents)
        others = {set_name(int(part.split("/")[0])) for part in item.parts} - metas.keys()
        found = {name: _whole_meta(self._folder / item.key / name) for name in others}
        metas |= {name: meta for name, meta in found.items() if meta is not None}
        return _record([metas[name] for name in sorted(metas)])


def _numbers_of_points(facts: Mapping[str, Any]) -> tuple[int, int, int]:
    """Pairs, positive and negative points; who told the pairs alone had drawn nothing else."""
    pairs = int(facts["k_pairs"])
    return pairs, int(facts.get("n_pos", pairs)), int(facts.get("n_neg", pairs))


def ledger_path(folder: Path) -> Path:
    """Where the ledger of a cache lies."""
    return folder.with_name(f"{folder.name}.ledger.parquet")


def set_name(promptset_id: int) -> str:
    """Folder name of a prompt set."""
    return f"promptset_{promptset_id:04d}"


def read_array(path: Path, *, sha256: str) -> np.ndarray:
    """A cached (256, 256) float16 array.

    Raises:
        ValueError: the file is absent or not the one that was cached; names it and says what to do.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). Materialise sam_cache again.") from error
    if (found := files.sha256(content)) != sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found[:12]}, the cache says {sha256[:12]}. "
            "Delete it and materialise sam_cache again."
        )
    try:
        return parse_array(content)
    except (ValueError, TypeError, SyntaxError, EOFError, MemoryError) as error:
        raise ValueError(f"{path} holds no array ({error}). Delete it and materialise sam_cache again.") from error


def read_arrays(paths: Sequence[Path], *, sha256: Sequence[str]) -> np.ndarray:
    """Cached arrays, (R, 256, 256) float16, each read and checked in its place; refused as `read_array` does."""
    found = np.empty((len(paths), LOW_RES, LOW_RES), dtype=np.float16)
    for path, wanted, place in zip(paths, sha256, found, strict=True):
        if not _read_into(place, path, sha256=wanted):
            place[:] = read_array(path, sha256=wanted)
    return found


def _read_into(place: np.ndarray, path: Path, *, sha256: str) -> bool:
    """Read an array file into (256, 256) float16; whether it is the one that was cached, in the usual layout."""
    header = bytearray(len(HEADER))
    try:
        with path.open("rb", buffering=0) as file:
            sizes = file.readinto(header), file.readinto(place.data), len(file.read(1))
    except OSError:
        return False
    if header != HEADER or sizes != (len(HEADER), place.nbytes, 0):
        return False
    content = hashlib.sha256(header)
    content.update(place.data)
    return content.hexdigest() == sha256


def asked_with(folder: Path, key: str) -> dict[str, Any] | None:
    """Which SAM said what is cached of a sample, and how wide its maps are; None where that is not to be read."""
    for path in sorted((folder / key).glob("promptset_*/meta.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            made_from = files.read_sealed(path, version=VERSION)["provenance"]
            asked = {name: made_from["logits"][name] for name in ("checkpoint_sha256", "model_type")}
            return {**asked, "gaussian_sigma": made_from["maps"]["gaussian_sigma"]}
    return None


def parse_array(content: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file; never unpickled."""
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _entries(folder: Path) -> Iterator[str]:
    """Names, sizes and times of the files of all prompt sets; what does not belong there is not looked at."""
    with os.scandir(folder) as sets:
        found = [(one.name, one.path) for one in sets if one.name.startswith("promptset_")]
    for of_set, path in found:
        for name in NAMES:  # asked by name, which takes less than to list each folder
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                state = os.stat(f"{path}/{name}")  # noqa: PTH116 - a Path would take longer to make than this
                yield f"{of_set}/{name}:{state.st_size}:{state.st_mtime_ns}"


def _whole_meta(folder: Path) -> dict[str, Any] | None:
    """meta.json of a prompt set, with only the parts whose files are those that it names. Raises `NewerFormat`."""
    try:
        meta = files.read_sealed(folder / "meta.json", version=VERSION)
        whole = {part for part, arrays in ARRAYS.items() if all(_matches(folder, meta, name) for name in arrays)}
        provenance = {part: value for part, value in meta["provenance"].items() if part in whole}
    except files.NewerFormat:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return {**meta, "provenance": provenance}


def _matches(folder: Path, meta: Mapping[str, Any], name: str) -> bool:
    path = folder / f"{name}.npy"
    return path.is_file() and files.file_sha256(path) == meta["sha256"][path.name]


def _record(metas: Sequence[Mapping[str, Any]]) -> Record:
    parts: dict[str, str] = {}
    contents: dict[str, str] = {}
    summary: dict[str, Any] = {}
    for meta in metas:
        name = f"{meta['promptset_id']:04d}"
        summary[name] = {"k_pairs": meta["k_pairs"], "branch": meta.get("branch")}
        summary[name] |= {f"n_{side}": len(meta["points"][side]) for side in ("pos", "neg")}
        summary[name] |= {"image_digest": meta["provenance"].get("logits", {}).get("image_digest")}
        for part, provenance in meta["provenance"].items():
            parts[f"{name}/{part}"] = digest(provenance)
            contents[f"{name}/{part}"] = "+".join(meta["sha256"][f"{array}.npy"] for array in ARRAYS[part])
    return Record(parts, contents, summary)


def _encode(folder: Path, key: str, output: SetOutput) -> tuple[dict[Path, bytes], dict[str, Any]]:
    """Array files of a prompt set and its meta, which keeps what it said of parts that were not made now."""
    arrays = {f"{name}.npy": files.array_bytes(array) for name, array in output.arrays.items()}
    kept: dict[str, Any] = {"sha256": {}, "provenance": {}}
    if output.provenance.keys() != ARRAYS.keys():
        kept |= _whole_meta(folder) or {}
    sha256 = kept["sha256"] | {name: files.sha256(content) for name, content in arrays.items()}
    always = {
        "format": "sam_cache", "version": VERSION, "safe_id": key, "promptset_id": output.promptset_id,
        "logits_size": [LOW_RES, LOW_RES], "dtypes": dict.fromkeys(sum(ARRAYS.values(), ()), "float16"),
        "sha256": dict(sorted(sha256.items())),
        "provenance": dict(sorted({**kept["provenance"], **output.provenance}.items())),
    }  # fmt: skip
    facts = {name: value for name, value in sorted({**kept, **output.facts}.items()) if name not in always}
    meta = always | facts
    return {folder / name: content for name, content in arrays.items()}, meta
