"""Writing a pack against copying its files."""

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_laplace_assets_tests.benchmarks.drawn import ROWS_A_SAMPLE, draw_samples
from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, median_interval, seconds

if TYPE_CHECKING:
    from sam_laplace_assets.storage.index import TrainingIndex
    from sam_laplace_assets.storage.pack import Pack

SAMPLES, ORIGINAL = 60, (480, 640)


def pack_writing(rounds: int) -> Sequence[Row]:
    """A pack from the cache's files, checked, whole and synced, against copies that are neither."""
    from sam_laplace_assets_tests.benchmarks.reference_pack import copy_files

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = draw_cache(folder / "project", SAMPLES)
        sources = _sources(index)
        size = sum(path.stat().st_size for path in sources)
        places = (folder / f"copy-{number}" for number in count())
        times = list(_turns(lambda place: pack_index(index, place), lambda place: copy_files(sources, place), places,
                            rounds=rounds))  # fmt: skip
    ratios = [mine / other for mine, other in times]
    low, high, confidence = median_interval(ratios)
    notes = {"ours_s": round(statistics.median(mine for mine, _ in times), 6),
             "theirs_s": round(statistics.median(other for _, other in times), 6), "MB": round(size / 1e6)}  # fmt: skip
    what = f"writing a pack of {SAMPLES} samples, {SAMPLES * ROWS_A_SAMPLE} rows, uncompressed, checked and synced"
    against = "`shutil.copyfile` of its .npy files and masks, not synced"
    middle = statistics.median(ratios)
    return [Row("pack_writing", what, against, middle, (low, high), confidence, 2.5, "lower", rounds=rounds,
                notes=notes)]  # fmt: skip


def _turns(ours: Any, theirs: Any, places: Iterator[Path], *, rounds: int) -> Iterator[tuple[float, float]]:
    """Seconds of both, in turns, each into a folder of its own and with nothing of the other's left to be written."""
    for turn in range(-1, rounds):
        both = {}
        for one in (ours, theirs) if turn % 2 == 0 else (theirs, ours):
            place = next(places)
            os.sync()
            both[one] = seconds(lambda one=one, place=place: one(place))  # type: ignore[misc]
            shutil.rmtree(place)
        if turn >= 0:
            yield both[ours], both[theirs]


def pack_index(index: "TrainingIndex", folder: Path) -> "Pack":
    """The pack of an index, by the platform itself."""
    from sam_laplace_assets.assets.pack import plan_pack
    from sam_laplace_assets.storage.materialise import materialise
    from sam_laplace_assets.storage.pack import Pack, PackStore

    materialise(plan_pack(index), PackStore(folder, index.split), progress=lambda *_: None)
    return Pack.open(folder / f"{index.split}.h5")


def write_pack(folder: Path, rows: int) -> "Pack":
    """A pack of drawn samples, ten rows each."""
    from sam_laplace_assets.domain.plan import Item, Plan
    from sam_laplace_assets.storage.materialise import materialise
    from sam_laplace_assets.storage.pack import Pack, PackStore
    from sam_laplace_assets.storage.shards import PART

    samples = list(draw_samples(rows // ROWS_A_SAMPLE))
    items = [Item(f"discs__{at:04d}", {PART: str(at)}, sample) for at, sample in enumerate(samples)]
    plan = Plan(items, make=lambda item, parts: item.source)
    materialise(plan, PackStore(folder, "train"), progress=lambda *_: None)
    return Pack.open(folder / "train.h5")


def draw_cache(project: Path, samples: int, *, rows: int = ROWS_A_SAMPLE) -> "TrainingIndex":
    """SAM's cache of drawn samples and their masks as files, and the index over them."""
    import pandas as pd

    from sam_laplace_assets.storage.index import TrainingIndex

    drawn = enumerate(draw_samples(samples, rows=rows))
    table = [row for at, sample in drawn for row in _write_sample(project, f"discs/{at:04d}", sample)]
    return TrainingIndex("train", pd.DataFrame(table), project / "masks", project, complete=True)


def _write_sample(project: Path, sample_id: str, sample: Any) -> Iterator[dict[str, Any]]:
    """Write the files of one sample, and give the index's rows."""
    import numpy as np
    from PIL import Image

    from sam_laplace_assets.domain.geometry import resize_nearest
    from sam_laplace_assets.storage import files, images

    safe_id, mask_path = sample_id.replace("/", "__"), project / "masks" / f"{sample_id}.png"
    mask = resize_nearest(sample.mask, *ORIGINAL)
    mask_path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((mask * 255).astype(np.uint8)).save(mask_path)
    shared = {"sample_id": sample_id, "safe_id": safe_id, "mask_path": f"{sample_id}.png",
              "mask_digest": images.mask_digest(mask)}  # fmt: skip
    for at, promptset_id in enumerate(sample.numbers["promptset_id"]):
        row = shared | {name: values[at] for name, values in sample.numbers.items()}
        folder = project / "sam_precompute" / "train" / safe_id / f"promptset_{promptset_id:04d}"
        folder.mkdir(parents=True)
        for name, arrays in sample.arrays.items():
            content, path = files.array_bytes(arrays[at]), folder / f"{name}.npy"
            path.write_bytes(content)
            row |= {f"{name}_path": str(path.relative_to(project)), f"{name}_sha256": files.sha256(content)}
        yield row


def _sources(index: "TrainingIndex") -> list[Path]:
    """All files that the pack is made of, each once."""
    from sam_laplace_assets.storage.shards import ARRAYS

    arrays = [index.project_root / path for name in ARRAYS for path in index.frame[f"{name}_path"]]
    return arrays + [index.masks_root / path for path in index.frame["mask_path"].unique()]


BENCHMARKS: dict[str, Benchmark] = {"pack_writing": pack_writing}
