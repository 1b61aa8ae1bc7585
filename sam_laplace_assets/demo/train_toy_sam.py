"""Train the toy SAM again: `python -m sam_laplace_assets.demo.train_toy_sam`."""

import argparse
import itertools
import json
import logging
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sam_laplace_assets.demo.augment import Batch, Scenes, draw_batch
from sam_laplace_assets.demo.evaluate_toy_sam import MIN_FRACTION, PAIRS, held_out_samples, mean_iou
from sam_laplace_assets.demo.files import save_weights, write_if_changed
from sam_laplace_assets.demo.scenes import Purpose, draw_scene, scene_rng
from sam_laplace_assets.demo.toy_sam import IMAGE_SIZE, TOY_CHECKPOINT, build_toy_sam

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor

LOG = logging.getLogger(__name__)

IMAGES, OBJECTS = 12, 4
LEARNING_RATE, WEIGHT_DECAY, WARMUP, EMA = 1e-3, 0.02, 150, 0.995


def main() -> None:
    """Draw the scenes, train, and leave the weights and a record of the training."""
    arguments = parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    start = time.monotonic()
    scenes = draw_scenes(arguments.scenes, seed=arguments.seed, workers=arguments.workers)
    LOG.info("drew %d scenes in %.0f s", arguments.scenes, time.monotonic() - start)
    train(scenes, steps=arguments.steps, seed=arguments.seed, threads=arguments.threads, out=arguments.out)
    record = {"scenes": arguments.scenes, "steps": arguments.steps, "seed": arguments.seed}
    record |= {"seconds": round(time.monotonic() - start), "threads": arguments.threads}
    write_if_changed(arguments.out.with_suffix(".train.json"), json.dumps(record, indent=2).encode() + b"\n")


def parse() -> argparse.Namespace:
    """The command line; its defaults are how the packaged weights were made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=TOY_CHECKPOINT, help="where the weights go")
    parser.add_argument("--scenes", type=int, default=6000, help="number of scenes to draw")
    parser.add_argument("--steps", type=int, default=3400, help="number of optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes, the weights and the batches")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw the scenes")
    parser.add_argument("--threads", type=int, default=1, help="threads of the optimiser; two gain little")
    return parser.parse_args()


def draw_scenes(count: int, *, seed: int, workers: int) -> Scenes:
    """Draw the training scenes, the same ones with any number of workers."""
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        drawn = pool.map(draw_training_scene, [seed] * count, range(count), chunksize=50)
        for index, (image, map_) in enumerate(drawn):
            images[index], labels[index] = image, map_
    return Scenes(images, labels)


def draw_training_scene(seed: int, index: int) -> tuple[Any, Any]:
    """Image and labels of one training scene."""
    scene = draw_scene(scene_rng(Purpose.TRAINING, seed, index))
    return scene.image, scene.labels


def train(scenes: Scenes, *, steps: int, seed: int, threads: int, out: Path, probes: int = 80) -> None:
    """Train with AdamW under a cosine schedule; the weights written are their moving average.

    The log tells the IoU on this many held-out scenes now and then, and nothing is chosen by it.
    """
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    sam = look_near_points(build_toy_sam()).train()
    average = AveragedModel(sam, multi_avg_fn=cast(Any, get_ema_multi_avg_fn)(EMA))
    optimizer = torch.optim.AdamW(sam.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps))
    probe, start, seen = list(held_out_samples(probes)), time.monotonic(), 0.0
    for step, batch in enumerate(batches(scenes, steps=steps, seed=seed), start=1):
        loss = batch_loss(sam, batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(sam)
        seen += (float(loss.detach()) - seen) * max(0.02, 1 / step)
        if step % 50 == 0:
            LOG.info("step %d/%d loss %.3f, %.2f s a step", step, steps, seen, (time.monotonic() - start) / step)
        if step % 250 == 0 or step == steps:
            save_weights(out, average.module.state_dict())
            LOG.info("held-out IoU by pairs of points: %s", mean_iou(average.module.eval(), probe, pairs=PAIRS))


def look_near_points(sam: "Sam") -> "Sam":
    """Let points and image cells attend to what lies near them before any training.

    Queries and keys of the decoder's cross attention start with one projection, so that equal positions match; from
    independent ones hundreds of steps go by before the model finds out where a point is.
    """
    import torch

    layers = [
        (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token)
        for layer in sam.mask_decoder.transformer.layers
    ]
    with torch.no_grad():
        for attention in (*itertools.chain(*layers), sam.mask_decoder.transformer.final_attn_token_to_image):
            attention.q_proj.weight.mul_(2)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
    return sam


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to one hundredth."""
    progress = min(1.0, max(0, step - WARMUP) / max(1, steps - WARMUP))
    return min(1.0, (step + 1) / WARMUP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def batches(scenes: Scenes, *, steps: int, seed: int) -> Iterator[Batch]:
    """The batches of all steps, each from its own stream, the next one drawn while one is used."""

    def draw(step: int) -> Batch:
        rng = np.random.default_rng((seed, step))
        return draw_batch(rng, scenes, images=IMAGES, objects=OBJECTS, min_fraction=MIN_FRACTION)

    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(draw, 0)
        for step in range(1, steps + 1):
            batch, pending = pending.result(), pool.submit(draw, step)
            yield batch


def batch_loss(sam: "Sam", batch: Batch) -> "Tensor":
    """Mean loss over the objects of a batch.

    The best of the three branches learns most, as in SAM; the branch that the quality head would choose learns too,
    since that is the one people get.
    """
    import torch

    logits, qualities = decode(sam, batch)
    losses = 8 * focal_loss(logits, batch.targets[:, None]) + dice_loss(logits, batch.targets[:, None])
    branches = losses[:, 1:]
    chosen = branches.gather(1, qualities[:, 1:].argmax(1, keepdim=True))
    masks = branches.min(1).values + 0.05 * branches.mean(1) + 0.3 * chosen[:, 0] + 0.3 * losses[:, 0]
    ious = cell_iou(logits.detach(), batch.targets[:, None])
    return (masks + 2 * torch.square(qualities - ious).mean(1)).mean()


def decode(sam: "Sam", batch: Batch) -> "tuple[Tensor, Tensor]":
    """Logits (B * M, 4, 64, 64) of all four branches and their predicted IoU (B * M, 4).

    The stock decoder repeats one image for all prompts; here each image is repeated for its own objects.
    """
    import torch

    decoder = sam.mask_decoder
    sparse, dense = sam.prompt_encoder(points=(batch.points, batch.labels), boxes=None, masks=None)
    queries = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(sparse), -1, -1)
    places = sam.prompt_encoder.get_dense_pe()
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = sam.image_encoder(batch.images)
        source = embeddings.repeat_interleave(len(sparse) // len(embeddings), 0) + dense
        tokens, pixels = decoder.transformer(source, places.expand_as(source), torch.cat([queries, sparse], 1))
        upscaled = decoder.output_upscaling(pixels.transpose(1, 2).reshape(source.shape))
        weights = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        logits = torch.einsum("nbc,nchw->nbhw", torch.stack(weights, 1), upscaled)
        qualities = decoder.iou_prediction_head(tokens[:, 0])
    return logits.float(), qualities.float()


def focal_loss(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """(N, C) focal loss with exponent 2, mean over pixels; targets are shares of a cell."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    targets = targets.expand_as(logits)
    missed = torch.square(torch.sigmoid(logits) - targets)
    return (missed * binary_cross_entropy_with_logits(logits, targets, reduction="none")).mean((2, 3))


def dice_loss(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """(N, C) one minus the soft Dice coefficient."""
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum((2, 3))
    return 1 - (2 * overlap + 1) / (probabilities.sum((2, 3)) + targets.sum((2, 3)) + 1)


def cell_iou(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """(N, C) IoU of the cells above zero with the cells that the object covers for the most part."""
    found, wanted = logits > 0, targets > 0.5
    return (found & wanted).sum((2, 3)) / (found | wanted).sum((2, 3)).clamp(min=1)


if __name__ == "__main__":
    main()
