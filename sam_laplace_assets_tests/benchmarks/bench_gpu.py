"""Images and epochs on a GPU: SAM alone, with all files written, by several processes. No rows where there is none."""

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_laplace_assets_tests.benchmarks.bench_stage import masks_in_bf16
from sam_laplace_assets_tests.benchmarks.bench_workers import by_workers, workers
from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, median_interval, paired, seconds
from sam_laplace_assets_tests.benchmarks.staging import PHOTO, SETS, Stage, photos

if TYPE_CHECKING:
    from sam_laplace_assets.resources.sam import SamModel

TARGETS = {"vit_b": 240.0, "vit_l": None, "vit_h": 80.0}
WRITTEN = 0.85
"""Part of the rate that is to be left with files written."""
IMAGES = 128
PLAIN_IMAGES = 8
"""Of the plain route, which takes many times as long for each."""
PROCESSES, COPIES = 4, 16
"""That share the GPU, as Python's lock may hold one of them up; and how often they get each image, for there to be work
enough."""


def throughput(rounds: int) -> list[Row]:
    """Of each of Segment Anything's models, in bf16, as it is and compiled."""
    if not _has_gpu():
        return []
    return [row for name, target in TARGETS.items() for compile in (False, True)
            for row in of_model(name, target, rounds, compile=compile)]  # fmt: skip


def of_model(
    model_type: str, target: float | None, rounds: int, *, images: int = IMAGES, processes: int = PROCESSES, **sam: Any
) -> list[Row]:
    """The rate of encoder and decoder, then what files and more processes make of it."""
    settings = {"device": "cuda", "precision": "bf16", "model_type": model_type, **sam}
    name = f"{model_type}, {settings['precision']}{', compiled' if sam.get('compile') else ''}"
    what = f"{name}, {images} images of {PHOTO[0]}x{PHOTO[1]}, {SETS} prompt sets each"
    with tempfile.TemporaryDirectory() as folder:
        stage = photos(Path(folder), count=images, **settings)
        model = stage.model()
        alone = calls(stage, model)
        first = seconds(alone)
        rates = [images / seconds(alone) for _ in range(rounds)]
        notes = {"gpu_computes": share_of_gpu(lambda: stage.run(model)), **_memory()}
        written = paired(
            f"{name} on a GPU, files written", lambda: stage.run(model), alone,
            what=f"sam_cache, {what}, images decoded and files written", against="encoder and decoder alone",
            target=WRITTEN, better="higher", rounds=rounds, warmup=0, notes=notes,
        )  # fmt: skip
    shared = _shared(images, processes, rounds, settings)
    how = f"{processes} processes that share the GPU (`compute: {{scheduler: local, workers: {processes}}}`)"
    return [
        _rate(f"{name} on a GPU", f"encoder and decoder, {what}", rates, target, {"first_s": round(first, 1)}),
        written,
        _rate(f"{name} on a GPU, {processes} processes", f"sam_cache by {how}, {what}, each {COPIES} times", shared,
              None if target is None else WRITTEN * target, {}),
    ]  # fmt: skip


def _shared(images: int, processes: int, rounds: int, settings: dict[str, Any]) -> list[float]:
    """Images a second of the stage, files written, by Dask's workers on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        stage = photos(Path(folder), count=images, copies=COPIES, **settings)
        model = stage.model()
        with workers(processes) as compute:
            by_workers(stage, model, compute)  # loads their SAMs
            return [images * COPIES / seconds(lambda: by_workers(stage, model, compute)) for _ in range(rounds)]


def calls(stage: Stage, model: "SamModel") -> Callable[[], None]:
    """The encoder's and decoder's work on images in memory, each batch begun before the one before is waited for."""
    asked = stage.asked()
    prepared = [model.frozen.prepare(image) for image, _ in asked]
    size = model.images_per_batch

    def run() -> None:
        under_way: deque[Any] = deque()
        for start in range(0, len(asked), size):
            embeddings = model.frozen.embed_batch(prepared[start : start + size])
            sets = [prompt_sets for _, prompt_sets in asked[start : start + size]]
            under_way.append(model.frozen.ask_many(list(zip(embeddings, sets, strict=True))))
            if len(under_way) > 1:
                under_way.popleft().wait()
        for one in under_way:
            one.wait()

    return run


def against_plain(rounds: int) -> list[Row]:
    """The whole stage against `SamPredictor` on the same GPU."""
    return [of_plain(name, rounds) for name in ("vit_b", "vit_h")] if _has_gpu() else []


def of_plain(model_type: str, rounds: int, *, images: int = PLAIN_IMAGES, **sam: Any) -> Row:
    """That of one model."""
    settings = {"device": "cuda", "precision": "bf16", "model_type": model_type, **sam}
    with tempfile.TemporaryDirectory() as folder:
        stage = photos(Path(folder), count=images, **settings)
        model = stage.model()
        return paired(
            f"{model_type} on a GPU against the plain route", lambda: stage.run(model), stage.plain(model),
            what=f"sam_cache, {model_type}, {settings['precision']}, {images} images of {PHOTO[0]}x{PHOTO[1]}, {SETS} "
                 f"prompt sets each, {settings['device'].upper()}",
            against="`SamPredictor` there: set_image, predict for each prompt set, resize, `np.save`, float32",
            target=None, better="higher", rounds=rounds,
        )  # fmt: skip


def masks(rounds: int) -> list[Row]:
    """What bfloat16 does to masks on a GPU, where the decoder computes in it, too."""
    return [masks_in_bf16("cuda")] if _has_gpu() else []


def training(rounds: int) -> list[Row]:
    """An epoch of the head against its own steps on batches that are on the GPU already."""
    return [epoch_on("cuda", rounds)] if _has_gpu() else []


def epoch_on(device: str, rounds: int, *, rows: int = 1600) -> Row:
    """That of a device."""
    import torch

    from sam_laplace_assets.domain.pack import batches
    from sam_laplace_assets_tests.benchmarks.bench_training import learner_on
    from sam_laplace_assets_tests.benchmarks.drawn import BATCH_SIZE, draw_rows

    data, learner = draw_rows(rows), learner_on(device, amp=True)
    there = list(batches(data, batch_size=BATCH_SIZE, device=device))

    def epoch(read: Iterable[Any]) -> None:
        learner.epoch(iter(read), report=lambda count: None)
        if device == "cuda":
            torch.cuda.synchronize()

    return paired(
        f"head training, {device}", lambda: epoch(batches(data, batch_size=BATCH_SIZE, device=device)),
        lambda: epoch(there),
        what=f"head training, one epoch of {rows} rows, batch {BATCH_SIZE}, the pack in memory, {device.upper()}",
        against="our own steps on batches that are on it", target=1.05, better="lower", rounds=rounds,
    )  # fmt: skip


def share_of_gpu(function: Callable[[], Any]) -> float | None:
    """Part of a function's time in which the GPU computes or copies, as PyTorch's profiler sees it; None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        started = time.perf_counter()
        function()
        torch.cuda.synchronize()
        wall = time.perf_counter() - started
    spans = [(one.time_range.start, one.time_range.end) for one in seen.events()
             if one.device_type == torch.autograd.DeviceType.CUDA]  # fmt: skip
    return round(covered(spans) / 1e6 / wall, 3)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of some spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _rate(name: str, what: str, values: list[float], target: float | None, notes: dict[str, Any]) -> Row:
    low, high, confidence = median_interval(values)
    return Row(name, what, "-", statistics.median(values), (low, high), confidence, target, "higher", unit="images/s",
               rounds=len(values), notes=notes)  # fmt: skip


def _memory() -> dict[str, float]:
    import torch

    return {"gpu_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2)} if torch.cuda.is_available() else {}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


BENCHMARKS: dict[str, Benchmark] = {
    "gpu": throughput,
    "gpu_against_plain": against_plain,
    "gpu_masks": masks,
    "gpu_training": training,
}
