"""Measure the toy SAM and write its card: `python -m sam_laplace_assets.demo.evaluate_toy_sam`."""

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.demo.card import render_card
from sam_laplace_assets.demo.files import write_if_changed
from sam_laplace_assets.demo.photos import Sample, coins
from sam_laplace_assets.demo.points import draw_points
from sam_laplace_assets.demo.scenes import Purpose, draw_scene, scene_rng
from sam_laplace_assets.demo.toy_sam import TOY_CHECKPOINT, load_toy_sam

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

PAIRS = (1, 3, 10)
MIN_FRACTION = 0.005
COIN_DRAWS = 4
FIRST = 40
TOLERANCE = 0.03


def main() -> None:
    """Measure a checkpoint and write the card beside it, as JSON and as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=TOY_CHECKPOINT, help="weights to measure")
    parser.add_argument("--samples", type=int, default=400, help="number of held-out scenes")
    arguments = parser.parse_args()
    card = evaluate(arguments.checkpoint, samples=arguments.samples)
    stem = arguments.checkpoint.with_suffix("").name
    write_if_changed(arguments.checkpoint.with_name(f"{stem}_card.json"), json.dumps(card, indent=2).encode() + b"\n")
    write_if_changed(arguments.checkpoint.with_name(f"{stem}_card.md"), render_card(card).encode())


def evaluate(checkpoint: Path, *, samples: int) -> dict[str, Any]:
    """The card of a checkpoint: what it is, how it was trained and what it reaches."""
    sam = load_toy_sam(checkpoint)
    content = checkpoint.read_bytes()
    training = json.loads(checkpoint.with_suffix(".train.json").read_text())
    held_out, coin_crops = list(held_out_samples(samples)), list(coins())
    return {
        "format": "toy SAM card, version 1",
        "weights": checkpoint.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": sum(parameter.numel() for parameter in sam.parameters()),
        "training": training,
        "tolerance": TOLERANCE,
        "held_out": {"samples": len(held_out), "iou": mean_iou(sam, held_out, pairs=PAIRS)},
        "held_out_first": {"samples": FIRST, "iou": mean_iou(sam, held_out[:FIRST], pairs=PAIRS)},
        "coins": {
            "samples": len(coin_crops),
            "draws": COIN_DRAWS,
            "iou": mean_iou(sam, coin_crops, pairs=PAIRS, draws=COIN_DRAWS),
        },
    }


def held_out_samples(count: int) -> Iterator[Sample]:
    """One object of each of the first held-out scenes, none of them tiny."""
    for index in range(count):
        rng = scene_rng(Purpose.HELD_OUT, 0, index)
        scene = draw_scene(rng)
        visible = scene.visible(min_fraction=MIN_FRACTION)
        if visible:
            yield Sample(scene.image, scene.labels == rng.choice(visible))


def mean_iou(sam: "Sam", samples: Iterable[Sample], *, pairs: Sequence[int], draws: int = 1) -> dict[str, float]:
    """Mean IoU, over samples and draws of points, of the branch that SAM itself chooses, by number of point pairs."""
    from segment_anything import SamPredictor

    predictor = SamPredictor(sam)
    found: dict[str, list[float]] = {str(count): [] for count in pairs}
    for index, sample in enumerate(samples):
        predictor.set_image(sample.rgb())
        for count in pairs:
            for draw in range(draws):
                rng = np.random.default_rng((index, count, draw))
                points, labels = draw_points(rng, sample.mask, positives=count, negatives=count)
                masks, qualities, _ = predictor.predict(points, labels, multimask_output=True)
                found[str(count)].append(iou(masks[int(np.argmax(qualities))], sample.mask))
    return {count: round(float(np.mean(values)), 4) for count, values in found.items()}


def iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks of which one is not empty."""
    return float(np.sum(first & second) / np.sum(first | second))


if __name__ == "__main__":
    main()
