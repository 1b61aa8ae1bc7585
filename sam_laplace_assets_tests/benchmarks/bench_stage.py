"""The whole SAM stage, files written: against the plain route, and against its own arithmetic."""

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sam_laplace_assets_tests.benchmarks.harness import CONFIDENCE, Benchmark, Row, median_interval, paired
from sam_laplace_assets_tests.benchmarks.staging import PHOTO, SETS, Stage, demo, difference, mask_ious, photos, tiny

PHOTOS = 2
"""Images of most rows, to be done in minutes."""
FEW_AND_MANY = ((200, 2000), (1000, 5000))
RESAMPLES = 2000


def precompute(rounds: int) -> list[Row]:
    """vit_b at photo size, in float32."""
    return [_against_plain("sam precompute", PHOTOS, rounds, target=1.45)]


def precompute_bf16(rounds: int) -> list[Row]:
    """The same in bfloat16, where the processor has units for it."""
    return [_against_plain("sam precompute, bf16", PHOTOS, rounds, target=3.0, precision="bf16")]


def bf16_masks(rounds: int) -> list[Row]:
    """What bfloat16 does to masks of a SAM that was trained."""
    return [masks_in_bf16("cpu")]


def masks_in_bf16(device: str) -> Row:
    """Mean IoU with the true masks in bfloat16 against that in float32, its interval bootstrapped over images."""
    from sam_laplace_assets.domain.bootstrap import bootstrap_means, percentile_interval

    with tempfile.TemporaryDirectory() as folder:
        stage = demo(Path(folder), device=device)
        caches = {precision: stage.run(stage.at(precision)) for precision in ("bf16", "float32")}
        ious = {precision: mask_ious(stage, cache) for precision, cache in caches.items()}
        notes = difference(caches["bf16"], caches["float32"])
    apart = ious["bf16"] - ious["float32"]
    means = bootstrap_means(apart, np.ones(len(apart)), resamples=RESAMPLES, seed=0)
    ends = percentile_interval(means, confidence=CONFIDENCE)
    return Row(
        f"masks in bf16, {device}",
        f"IoU of the toy SAM's masks with the true ones in bf16, {len(apart)} scenes of the demo's kind, {SETS} prompt "
        f"sets each, {device.upper()}: how far its mean is off",
        "the same in float32", abs(float(apart.mean())), _sizes(ends), CONFIDENCE, 0.002, "lower", unit="IoU",
        rounds=len(apart), notes={"iou_float32": round(float(ious["float32"].mean()), 4), **notes},
    )  # fmt: skip


def _sizes(ends: tuple[float, float]) -> tuple[float, float]:
    """An interval without its sign."""
    low, high = sorted(map(abs, ends))
    return (0.0 if ends[0] <= 0 <= ends[1] else low), high


def _against_plain(name: str, count: int, rounds: int, *, target: float, **sam: Any) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        stage = photos(Path(folder), count=count, **sam)
        model, precision = stage.model(), sam.get("precision", "float32")
        notes = {} if precision == "float32" else difference(stage.run(model), stage.run(stage.at("float32")))
        return paired(
            name, lambda: stage.run(model), stage.plain(model),
            what=f"sam_cache, vit_b with seeded random weights, {_images(count)}, files written and synced, CPU, "
                 f"{precision}",
            against="`SamPredictor`: set_image, predict for each prompt set, resize, `np.save`, float32",
            target=target, better="higher", rounds=rounds, warmup=0, notes=notes,
        )  # fmt: skip


def kept_embeddings(rounds: int) -> list[Row]:
    """Other prompts for images whose embedding is kept."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as trained:
        scenes = demo(Path(trained))
        notes = difference(scenes.run(model := scenes.model(), embeddings="float16"), scenes.run(model))
        stage = photos(Path(folder), count=1)
        model = stage.model()
        stage.run(model, embeddings="float16", folder=stage.cache)
        return [paired(
            "sam precompute, embeddings kept", lambda: stage.run(model, embeddings="float16"), lambda: stage.run(model),
            what="sam_cache with `sam.cache_embeddings: float16` and the embeddings there, vit_b, "
                 f"{_images(1)}, CPU, float32",
            against="sam_cache without them",
            target=None, better="higher", rounds=rounds, warmup=0,
            notes={f"toy_{name}": value for name, value in notes.items()},
        )]  # fmt: skip


def own_arithmetic(rounds: int) -> list[Row]:
    """What the stage adds to the calls of its own encoder and decoder."""
    with tempfile.TemporaryDirectory() as folder:
        stage = photos(Path(folder), count=PHOTOS)
        model = stage.model()
        asked = stage.asked()

        def calls() -> None:
            for image, prompt_sets in asked:
                model.frozen.answer(model.frozen.embed(image), prompt_sets)

        return [paired(
            "stage against its own calls", lambda: stage.run(model), calls,
            what=f"sam_cache, vit_b, {_images(PHOTOS)}, CPU, float32",
            against="its own encoder and decoder on images in memory, nothing written",
            target=1.10, better="lower", rounds=rounds, warmup=0,
        )]  # fmt: skip


def _images(count: int) -> str:
    many = f"{count} images" if count > 1 else "an image"
    return f"{many} of {PHOTO[0]}x{PHOTO[1]}, {SETS} prompt sets each"


def toy(rounds: int) -> list[Row]:
    """The toy SAM, where overhead shows."""
    with tempfile.TemporaryDirectory() as folder:
        stage = demo(Path(folder))
        model = stage.model()
        asked = stage.asked()
        from sam_laplace_assets_tests.benchmarks.reference_sam import bare_loop, load_plain

        plain = load_plain(model.settings.model_type, model.checkpoint)
        return [paired(
            "toy sam over scenes", lambda: stage.run(model), lambda: bare_loop(plain, asked),
            what=f"sam_cache, the toy SAM, {len(asked)} scenes of the demo's kind, {SETS} prompt sets each, CPU",
            against="a bare loop of its encoder and, for each prompt set, its decoder; no resize, nothing written",
            target=1.5, better="lower", rounds=rounds,
        )]  # fmt: skip


def memory(rounds: int) -> list[Row]:
    """Peak memory of many images against few, each time in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        counts = sorted({count for pair in FEW_AND_MANY for count in pair})
        peaks = {count: _peaks(Path(folder) / str(count), count, rounds) for count in counts}
    return [_compared(few, many, peaks[few], peaks[many]) for few, many in FEW_AND_MANY]


def _compared(few: int, many: int, of_few: Sequence[float], of_many: Sequence[float]) -> Row:
    ratios = [more / less for more, less in zip(of_many, of_few, strict=True)]
    low, high, confidence = median_interval(ratios)
    return Row(
        f"peak memory of sam_cache, {many} images", f"peak memory of sam_cache of {many:,} images, the toy SAM",
        f"that of {few:,} images", median(ratios), (low, high), confidence, 1.05, "lower", rounds=len(ratios),
        notes={"few_MiB": round(median(of_few) / 2**20), "many_MiB": round(median(of_many) / 2**20)},
    )  # fmt: skip


def _peaks(folder: Path, count: int, rounds: int) -> list[float]:
    """Bytes of memory that fresh processes had at most, each of which made the sam_cache of the same images."""
    folder.mkdir()
    stage = tiny(folder, count)
    return [_in_fresh_process(stage) for _ in range(rounds)]


def _in_fresh_process(stage: Stage) -> float:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_run_tiny, stage).result()


def _run_tiny(stage: Stage) -> float:
    shutil.rmtree(stage.run(stage.model()))
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


BENCHMARKS: dict[str, Benchmark] = {
    "sam_precompute": precompute,
    "sam_precompute_bf16": precompute_bf16,
    "sam_bf16_masks": bf16_masks,
    "sam_embeddings": kept_embeddings,
    "sam_stage": own_arithmetic,
    "sam_toy": toy,
    "sam_memory": memory,
}
