"""Images a second on a GPU: encoder and decoder alone, and with all files written. No rows where there is no GPU."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, median_interval
from sam_laplace_assets_tests.benchmarks.staging import PHOTO, SETS, Stage, photos

if TYPE_CHECKING:
    from sam_laplace_assets.resources.sam import SamModel

TARGETS = {"vit_b": 240.0, "vit_l": None, "vit_h": 80.0}
WRITTEN = 0.85
"""Part of the rate that is to be left with files written."""
IMAGES = 128


def throughput(rounds: int) -> list[Row]:
    """Of each of Segment Anything's models, in bf16."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [row for name, target in TARGETS.items() for row in of_model(name, target, rounds)]


def of_model(model_type: str, target: float | None, rounds: int, *, images: int = IMAGES, **sam: Any) -> list[Row]:
    """Two rows of one model: without and with files."""
    settings = {"device": "cuda", "precision": "bf16", "model_type": model_type, **sam}
    with tempfile.TemporaryDirectory() as folder:
        stage = photos(Path(folder), count=images, **settings)
        model = stage.model()
        alone = _rates(calls(stage, model), images, rounds)
        written = _rates(lambda: stage.run(model), images, rounds)
    what = f"{model_type}, bf16, {images} images of {PHOTO[0]}x{PHOTO[1]}, {SETS} prompt sets each"
    files = [with_files / without for with_files, without in zip(written, alone, strict=True)]
    notes = {"images_per_second": round(statistics.median(written), 2), **_memory()}
    return [_row(f"{model_type} on a GPU", f"encoder and decoder, {what}", "-", alone, target, "images/s", {}),
            _row(f"{model_type} on a GPU, files written", f"sam_cache, {what}, images decoded and files written",
                 "encoder and decoder alone", files, WRITTEN, "x", notes)]  # fmt: skip


def calls(stage: Stage, model: "SamModel") -> Callable[[], None]:
    """The encoder's and decoder's work on images in memory."""
    asked = stage.asked()
    prepared = [model.frozen.prepare(image) for image, _ in asked]
    size = model.images_per_batch

    def run() -> None:
        for start in range(0, len(asked), size):
            embeddings = model.frozen.embed_batch(prepared[start : start + size])
            sets = [prompt_sets for _, prompt_sets in asked[start : start + size]]
            model.frozen.answer_many(list(zip(embeddings, sets, strict=True)))

    return run


def _rates(function: Callable[[], Any], images: int, rounds: int) -> list[float]:
    """Images a second of each round, after one that does not count."""
    rates = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        function()
        rates.append(images / (time.perf_counter() - started))
    return rates[1:]


def _row(
    name: str, what: str, against: str, values: list[float], target: float | None, unit: str, notes: dict[str, Any]
) -> Row:
    low, high, confidence = median_interval(values)
    return Row(name, what, against, statistics.median(values), (low, high), confidence, target, "higher", unit=unit,
               rounds=len(values), notes=notes)  # fmt: skip


def _memory() -> dict[str, float]:
    import torch

    return {"gpu_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2)} if torch.cuda.is_available() else {}


BENCHMARKS: dict[str, Benchmark] = {"gpu": throughput}
