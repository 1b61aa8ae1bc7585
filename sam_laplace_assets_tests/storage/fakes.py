"""Small plans for every store, processes that die, and what a folder holds."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sam_laplace_assets.domain.plan import Item, Plan, digest
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.materialise import Outcome, materialise
from sam_laplace_assets.storage.sam import SampleOutput, SetOutput
from sam_laplace_assets.storage.shards import ARRAYS, NUMBERS, PackedSample

KEYS = ("cat__1", "cat__2", "dog__1")


class Died(BaseException):
    """The process is gone."""


@dataclass
class Death:
    """What becomes of a process: `step` counts what it did on the disk, `happened` says that it is dead."""

    at: int
    step: int = 0
    happened: bool = False

    def comes(self) -> bool:
        """Whether the process dies at, or is dead before, this step."""
        self.happened = self.happened or self.step == self.at
        self.step += 1
        return self.happened


@contextlib.contextmanager
def death(at: int) -> Iterator[Death]:
    """A process that dies at its `at`-th step on the disk: a write is left half done, and nothing follows it."""
    fate = Death(at)

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if fate.comes():
                raise Died
            return function(*args, **kwargs)

        return call

    write_bytes = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        already, dies = fate.happened, fate.comes()
        if not already:
            write_bytes(path, content[: len(content) // 2] if dies else content)
        if dies:
            raise Died
        return len(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        patch.setattr(Path, "replace", mortal(Path.replace))
        patch.setattr(Path, "unlink", mortal(Path.unlink))
        patch.setattr(os, "fsync", mortal(os.fsync))
        with contextlib.suppress(Died):
            yield fate


def temporaries(folder: Path) -> list[Path]:
    """What writers left behind."""
    return list(folder.rglob(f"{files.TEMPORARY}*"))


def holds(folder: Path) -> dict[str, Any]:
    """Relative path -> content, of all files that are no memory and no leftover; HDF5 files as their datasets."""
    kept = (path for path in sorted(folder.rglob("*")) if path.is_file() and files.TEMPORARY not in path.name)
    return {path.relative_to(folder).as_posix(): content(path) for path in kept if ".ledger." not in path.name}


def content(path: Path) -> Any:
    """The bytes of a file; of an HDF5 file its datasets and attributes."""
    if path.suffix != ".h5":
        return path.read_bytes()
    with h5py.File(path, "r", locking=False) as file:
        datasets = {name: file[name][:].tobytes() for name in file if file[name].dtype != object}
        strings = {name: file[name].asstr()[:].tolist() for name in file if file[name].dtype == object}
        return datasets | strings | {name: str(value) for name, value in file.attrs.items()}


def flip(path: Path, at: int = -3) -> None:
    """Change one bit of a file, and give it back the time that it had."""
    before, changed = path.stat(), bytearray(path.read_bytes())
    changed[at] ^= 1
    path.write_bytes(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def unsealed(text: str) -> dict[str, Any]:
    """A JSON document without its check: written as it is, it is one of before there were any."""
    return {name: said for name, said in json.loads(text).items() if name != files.CHECK}


def cut(path: Path) -> None:
    """Lose the second half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def quiet(done: int, failed: int, total: int, unit: str) -> None:
    """Progress that nobody hears."""


def make(plan: Plan, store: Any) -> Outcome:
    """Materialise without a word."""
    return materialise(plan, store, progress=quiet)


@dataclass
class Work:
    """What a plan was asked to make."""

    made: list[tuple[str, frozenset[str]]] = field(default_factory=list)

    def take(self) -> list[tuple[str, frozenset[str]]]:
        """What was made since the last time."""
        made, self.made = self.made, []
        return made


@dataclass(frozen=True)
class Drawn:
    """Stands for a sample and how its prompt sets are drawn."""

    key: str
    seed: int

    @property
    def provenance(self) -> dict[str, Any]:
        """What the sets depend on."""
        return {"mask_digest": digest(self.key), "prompt_seed": self.seed}

    def header(self) -> dict[str, Any]:
        """What the file says beside the sets."""
        return {"sample_id": self.key.replace("__", "/"), "image_h": 9, "image_w": 9, "provenance": self.provenance}


def prompt_plan(
    keys: Sequence[str] = KEYS, *, seed: int = 0, seeds: Mapping[str, int] | None = None, work: Work | None = None,
    failing: Sequence[str] = (), **more: Any,
) -> Plan:  # fmt: skip
    """One prompt set a sample, another one for another seed."""
    sources = [Drawn(key, (seeds or {}).get(key, seed)) for key in keys]

    def draw(item: Item, parts: frozenset[str]) -> tuple[PromptSet, ...]:
        if work is not None:
            work.made.append((item.key, parts))
        if item.key in failing:
            raise ValueError(f"the mask of {item.key} is empty")
        return (PromptSet(0, ((len(item.key), item.source.seed),), ((3, 4),)),)

    return Plan([Item(one.key, {"prompts": digest(one.provenance)}, one) for one in sources], make=draw, **more)


def sam_plan(
    keys: Sequence[str] = KEYS, *, sets: int = 2, sigma: float = 8.0, images: Mapping[str, str] | None = None,
    work: Work | None = None, **more: Any,
) -> Plan:  # fmt: skip
    """Logits that depend on the image, maps that depend on sigma, as arrays of 2x2."""
    sources = {key: _sam_provenance(sets, sigma, (images or {}).get(key, key)) for key in keys}

    def answer(item: Item, parts: frozenset[str]) -> SampleOutput:
        if work is not None:
            work.made.append((item.key, parts))
        names = sorted({part.split("/")[0] for part in parts})
        return SampleOutput([_output(item, name, parts) for name in names])

    items = [Item(key, {part: digest(made_from) for part, made_from in source.items()}, source)
             for key, source in sources.items()]  # fmt: skip
    return Plan(items, make=answer, **more)


def _sam_provenance(sets: int, sigma: float, image: str) -> dict[str, Any]:
    logits = {f"{at:04d}/logits": {"image_digest": image, "points": at} for at in range(sets)}
    return logits | {f"{at:04d}/maps": {"points": at, "gaussian_sigma": sigma} for at in range(sets)}


def _output(item: Item, name: str, parts: frozenset[str]) -> SetOutput:
    arrays = {"logits": ("logits_256",), "maps": ("pos_map", "neg_map")}
    made = [part for part in arrays if f"{name}/{part}" in parts]
    provenance = {part: item.source[f"{name}/{part}"] for part in made}
    values = {array: _array([array, provenance[part]]) for part in made for array in arrays[part]}
    facts: dict[str, Any] = {"sample_id": item.key.replace("__", "/"), "k_pairs": 1}
    if "logits" in made:
        facts |= {"branch": 0, "predicted_ious": [0.5]}
    if "maps" in made:
        facts |= {"sigma": provenance["maps"]["gaussian_sigma"], "points": {"pos": [[1, 2]], "neg": [[3, 4]]},
                  "points_256": {"pos": [[1.0, 2.0]], "neg": [[3.0, 4.0]]}}  # fmt: skip
    return SetOutput(int(name), values, facts, provenance)


def _array(made_from: Any) -> np.ndarray:
    return np.array([[int(digest(made_from)[:2], 16), 1], [2, 3]], dtype=np.float16)


def packed(key: str, *, rows: int = 2, seed: int = 0) -> PackedSample:
    """A sample with its rows, all of it depending on key and seed."""
    stream = np.random.default_rng(int(digest([key, seed])[:8], 16))
    arrays = {name: stream.integers(-8, 8, (rows, 256, 256)).astype(np.float16) for name in ARRAYS}
    numbers = {name: stream.integers(0, 9, rows).tolist() for name in NUMBERS} | {"promptset_id": list(range(rows))}
    return PackedSample(arrays, numbers, stream.random((256, 256)) > 0.5)


def pack_plan(
    keys: Sequence[str] = KEYS, *, seeds: Mapping[str, int] | None = None, work: Work | None = None,
    failing: Sequence[str] = (), **more: Any,
) -> Plan:  # fmt: skip
    """A sample has as many rows as its name's last digit says."""
    of = {key: (int(key[-1]), (seeds or {}).get(key, 0)) for key in keys}

    def read(item: Item, parts: frozenset[str]) -> PackedSample:
        if work is not None:
            work.made.append((item.key, parts))
        if item.key in failing:
            raise ValueError(f"the mask of {item.key} has changed")
        rows, seed = item.source
        return packed(item.key, rows=rows, seed=seed)

    return Plan([Item(key, {"rows": digest([key, source])}, source) for key, source in of.items()], make=read, **more)
