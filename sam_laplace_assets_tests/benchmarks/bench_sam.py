"""SAM's encoder and decoder against the stock ones, on a vit_b whose weights are drawn from a seed."""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, paired

if TYPE_CHECKING:
    import torch
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

    from sam_laplace_assets.domain.prompts import PromptSet
    from sam_laplace_assets.domain.sam import Embedding, FrozenSam

SIZE = (1000, 1500)
PAIRS = range(1, 11)
SIGMA = 8.0
ENCODER_ROUNDS = 3
PHOTO = f"an image of {SIZE[0]}x{SIZE[1]}"
SETS = f"{len(PAIRS)} prompt sets of {PAIRS[0]} to {PAIRS[-1]} pairs on {PHOTO}, vit_b, float32, CPU"


def encoder_float32(rounds: int) -> Sequence[Row]:
    """One image through the encoder, in float32."""
    return [_encoder("encoder_float32", "float32", "float32", min(rounds, ENCODER_ROUNDS), target=1.4)]


def encoder_bf16(rounds: int) -> Sequence[Row]:
    """The same in bfloat16, which pays where the processor multiplies it itself."""
    return [_encoder("encoder_bf16", "bf16", "bfloat16", min(rounds, ENCODER_ROUNDS), target=3.0)]


def _encoder(name: str, precision: Any, in_words: str, rounds: int, *, target: float) -> Row:
    import torch

    from sam_laplace_assets.domain.sam import FrozenSam

    stock = _stock()
    frozen = FrozenSam(stock, precision=precision)
    prepared = frozen.prepare(_photo())
    pixels = stock.preprocess(prepared.pixels)[None]

    @torch.no_grad()
    def theirs() -> "torch.Tensor":
        features: torch.Tensor = stock.image_encoder(pixels)
        return features

    expected = theirs()
    off = frozen.embed(prepared).features - expected
    return paired(
        name, lambda: frozen.embed(prepared), theirs, rounds=rounds, warmup=0, target=target, better="higher",
        what=f"image encoder, vit_b with seeded random weights, {PHOTO}, {in_words}, CPU",
        against="the stock encoder in float32",
        notes={
            "off_by_rms_of_sd": float(f"{float(off.std() / expected.std()):.2g}"),
            "off_by_at_most": float(f"{float(off.abs().max()):.2g}"),
        },
    )  # fmt: skip


def decoder_one_more_prompt_set(rounds: int) -> Sequence[Row]:
    """A prompt set of ten with all that is done for it, files included."""
    frozen, predictor, embedding, prompt_sets = _asked()
    with tempfile.TemporaryDirectory() as folder:
        fresh = (Path(folder) / str(number) for number in itertools.count())
        return [paired(
            "decoder_one_more_prompt_set",
            lambda: _ours_with_files(frozen, embedding, prompt_sets, next(fresh)),
            _theirs_with_files(predictor, prompt_sets, fresh),
            what=f"one prompt set among {SETS}: decoder, resize, maps, files synced and with their SHA-256",
            against="`SamPredictor.predict`, resize, maps, `np.save`",
            target=0.5, better="lower", rounds=rounds, notes={"sets": len(prompt_sets)},
        )]  # fmt: skip


def decoder_ten_sets(rounds: int) -> Sequence[Row]:
    """Logits at 256x256 of ten prompt sets, nothing written."""
    from sam_laplace_assets_tests.benchmarks.reference_sam import plain_answer

    frozen, predictor, embedding, prompt_sets = _asked()
    answers = frozen.answer(embedding, prompt_sets)
    plain = [plain_answer(predictor, one) for one in prompt_sets]
    off = max(float(np.abs(one.logits_256 - logits).max()) for one, (logits, _, _) in zip(answers, plain, strict=True))
    return [paired(
        "decoder_ten_sets",
        lambda: frozen.answer(embedding, prompt_sets),
        lambda: [plain_answer(predictor, one) for one in prompt_sets],
        what=f"decoder and logits at 256x256 of {SETS}", against="`SamPredictor.predict` and a resize",
        target=2.0, better="higher", rounds=rounds,
        notes={
            "off_by_at_most": round(off, 5),
            "other_branches": sum(one.branch != branch for one, (_, branch, _) in zip(answers, plain, strict=True)),
        },
    )]  # fmt: skip


def _asked() -> "tuple[FrozenSam, SamPredictor, Embedding, list[PromptSet]]":
    from segment_anything import SamPredictor

    from sam_laplace_assets.domain.sam import FrozenSam

    stock, image = _stock(), _photo()
    frozen, predictor = FrozenSam(stock), SamPredictor(stock)
    predictor.set_image(image)
    return frozen, predictor, frozen.embed(image), _prompt_sets()


def _ours_with_files(
    frozen: "FrozenSam", embedding: "Embedding", prompt_sets: "Sequence[PromptSet]", folder: Path
) -> None:
    """Answers, maps and the files of the cache, as the stage makes them."""
    from sam_laplace_assets.domain.plan import Item
    from sam_laplace_assets.storage.sam import SampleOutput, SamStore

    answers = frozen.answer(embedding, prompt_sets)
    outputs = [_output(*pair) for pair in zip(prompt_sets, answers, strict=True)]
    parts = {f"{one.promptset_id:04d}/{part}": "" for one in prompt_sets for part in ("logits", "maps")}
    SamStore(folder).write_files(Item("photo", parts), frozenset(parts), SampleOutput(outputs))


def _output(prompt_set: "PromptSet", answer: Any) -> Any:
    from sam_laplace_assets.domain.geometry import to_low_res
    from sam_laplace_assets.domain.prompts import gaussian_map
    from sam_laplace_assets.storage.sam import SetOutput

    points = {"pos": prompt_set.pos, "neg": prompt_set.neg}
    places = {side: to_low_res(np.asarray(one), image_h=SIZE[0], image_w=SIZE[1]) for side, one in points.items()}
    arrays = {f"{side}_map": gaussian_map(one, sigma=SIGMA) for side, one in places.items()}
    facts = {
        "sample_id": "bench/photo", "k_pairs": prompt_set.k_pairs, "sigma": SIGMA, "points": points,
        "points_256": {side: one.tolist() for side, one in places.items()}, "branch": answer.branch,
        "predicted_ious": list(answer.predicted_ious),
    }  # fmt: skip
    provenance = {"logits": {"image_digest": "0" * 64}, "maps": {"gaussian_sigma": SIGMA}}
    return SetOutput(prompt_set.promptset_id, arrays | {"logits_256": answer.logits_256}, facts, provenance)


def _theirs_with_files(predictor: "SamPredictor", prompt_sets: "Sequence[PromptSet]", fresh: Any) -> Callable[[], None]:
    from sam_laplace_assets_tests.benchmarks.reference_sam import plain_prompt_set

    def write() -> None:
        folder = next(fresh)
        for one in prompt_sets:
            plain_prompt_set(predictor, one, folder / f"{one.promptset_id:04d}", sigma=SIGMA)

    return write


def _stock() -> "Sam":
    """vit_b with seeded weights; its tables of positions, which are born as zeros, too."""
    import torch
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    model: Sam = sam_model_registry["vit_b"]().eval().requires_grad_(False)
    for name, weight in model.image_encoder.named_parameters():
        if "pos" in name:
            weight.normal_(0, 0.1)
    return model


def _photo() -> np.ndarray:
    """(1000, 1500, 3) uint8: a bright disc on smooth noise."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).normal(size=(*SIZE, 3)), (8, 8, 0))
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    disc = np.hypot(y - SIZE[0] * 0.5, x - SIZE[1] * 0.4) < SIZE[0] * 0.2
    return (110 + 40 * noise / noise.std() + 60 * disc[..., None]).clip(0, 255).astype(np.uint8)


def _prompt_sets() -> "list[PromptSet]":
    """One set of each number of pairs, anywhere on the image."""
    from sam_laplace_assets.domain.prompts import PromptSet

    rng = np.random.default_rng(1)

    def points(count: int) -> tuple[tuple[int, int], ...]:
        return tuple((int(rng.integers(SIZE[1])), int(rng.integers(SIZE[0]))) for _ in range(count))

    return [PromptSet(number, points(pairs), points(pairs)) for number, pairs in enumerate(PAIRS)]


BENCHMARKS: dict[str, Benchmark] = {
    "encoder_float32": encoder_float32,
    "encoder_bf16": encoder_bf16,
    "decoder_one_more_prompt_set": decoder_one_more_prompt_set,
    "decoder_ten_sets": decoder_ten_sets,
}
