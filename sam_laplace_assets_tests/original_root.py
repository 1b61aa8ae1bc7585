"""A project root as the original scripts leave it, made as their description says, with SamPredictor itself."""

import csv
import json
import random

import numpy as np
import torch
from PIL import Image
from segment_anything import SamPredictor
from torch.nn import functional

from sam_laplace_assets.demo.toy_sam import load_toy_sam

SPLITS = ("train", "val", "test")
COLUMNS = ("sample_id", "safe_id", "class_name", "stem", "image_path", "mask_path", "image_h", "image_w", "split")
INDEX = ("sample_id", "safe_id", "split", "promptset_id", "image_path", "image_h", "image_w", "mask_path",
         "logits_256_path", "pos_map_path", "neg_map_path", "k_pairs")  # fmt: skip


def make_original(root, folder, *, sets=2, max_pairs=3, sigma=8, half_pixel=True):
    """Run stages 1 to 4 of the original on images/ and masks/ of a folder, and leave some of 5 and 6 behind.

    Args:
        root: where to.
        folder: holds images/, masks/ and the checkpoint sam.pt.
        sets: prompt sets a sample.
        max_pairs: largest k.
        sigma: of the maps.
        half_pixel: whether points are rescaled between pixel centres, or between corners.
    """
    predictor = SamPredictor(load_toy_sam(folder / "sam.pt"))
    splits = build_manifests(root, folder)
    rows = {split: [] for split in SPLITS}
    for split, samples in splits.items():
        for sample in samples:
            image, mask = read_pair(sample)
            prompt_sets = generate_promptsets(root, sample, mask, sets=sets, max_pairs=max_pairs)
            predictor.set_image(image)
            for one in prompt_sets:
                place = root / "sam_precompute" / split / sample["safe_id"] / f"promptset_{one['promptset_id']:04d}"
                precompute(place, predictor, sample, one, sigma=sigma, half_pixel=half_pixel)
                rows[split].append(index_row(sample, one, place))
    for split, its_rows in rows.items():
        write_csv(root / "training_data" / "no_image" / f"{split}_index.csv", INDEX, its_rows)
    leave_runs(root)


def build_manifests(root, folder):
    """All samples shuffled by a seed; a class gives one of five to val and one to test."""
    samples = [sample_of(path, folder) for path in sorted((folder / "images").rglob("*")) if path.is_file()]
    splits = {split: [] for split in SPLITS}
    for name in sorted({sample["class_name"] for sample in samples}):
        of_class = [sample for sample in samples if sample["class_name"] == name]
        random.Random(123).shuffle(of_class)
        for at, sample in enumerate(of_class):
            sample["split"] = {0: "test", 1: "val"}.get(at % 5, "train")
            splits[sample["split"]].append(sample)
    write_csv(root / "manifests" / "all_samples.csv", COLUMNS, samples)
    for split, of_split in splits.items():
        write_csv(root / "manifests" / f"{split}.csv", COLUMNS, of_split)
    return splits


def sample_of(path, folder):
    sample_id = path.relative_to(folder / "images").with_suffix("").as_posix()
    mask = next((folder / "masks" / sample_id).parent.glob(f"{path.stem}.*"))
    with Image.open(path) as image:
        width, height = image.size
    return {"sample_id": sample_id, "safe_id": sample_id.replace("/", "__"), "class_name": sample_id.rpartition("/")[0],
            "stem": path.stem, "image_path": str(path), "mask_path": str(mask), "image_h": height,
            "image_w": width}  # fmt: skip


def read_pair(sample):
    """(H, W, 3) uint8 image and (H, W) bool mask."""
    mask = sample["mask_path"]
    values = np.load(mask) if mask.endswith(".npy") else np.asarray(Image.open(mask))
    return np.asarray(Image.open(sample["image_path"]).convert("RGB")), values > 0


def generate_promptsets(root, sample, mask, *, sets, max_pairs):
    """k random pixels of the object and k beside it, from a stream of the sample's own."""
    stream = random.Random(f"777-{sample['sample_id']}")
    on, off = ([[int(x), int(y)] for y, x in np.argwhere(side)] for side in (mask, ~mask))
    prompt_sets = []
    for at in range(sets):
        k = stream.randint(1, max_pairs)
        prompt_sets.append(
            {"promptset_id": at, "k_pairs": k, "pos": stream.sample(on, k), "neg": stream.sample(off, k)}
        )
    document = {"sample_id": sample["sample_id"], "image_h": sample["image_h"], "image_w": sample["image_w"],
                "prompt_sets": prompt_sets}  # fmt: skip
    write_json(root / "prompt_sets" / sample["split"] / f"{sample['safe_id']}.json", document)
    return prompt_sets


def precompute(place, predictor, sample, one, *, sigma, half_pixel):
    """Logits of the best branch at 256x256, both maps, and meta.json."""
    place.mkdir(parents=True)
    coords = np.array([*one["pos"], *one["neg"]])
    labels = np.array([1] * len(one["pos"]) + [0] * len(one["neg"]))
    masks, ious, _ = predictor.predict(coords, labels, multimask_output=True, return_logits=True)
    branch = int(np.argmax(ious))
    best = torch.from_numpy(masks[branch])[None, None]
    logits = functional.interpolate(best, (256, 256), mode="bilinear", align_corners=False)[0, 0].numpy()
    np.save(place / "logits_256.npy", logits.astype(np.float16))
    rescaled = {side: [rescale(point, sample, half_pixel) for point in one[side]] for side in ("pos", "neg")}
    for side, points in rescaled.items():
        np.save(place / f"{side}_map.npy", draw_map(points, sigma))
    meta = {"points_original": {side: one[side] for side in rescaled}, "points_256": rescaled, "branch_index": branch,
            "sigma": sigma, "dtypes": dict.fromkeys(("logits_256", "pos_map", "neg_map"), "float16"),
            "logits_size": [256, 256]}  # fmt: skip
    write_json(place / "meta.json", meta)


def rescale(point, sample, half_pixel):
    shift = 0.5 if half_pixel else 0.0
    sizes = (sample["image_w"], sample["image_h"])
    return [(value + shift) * 256 / size - shift for value, size in zip(point, sizes, strict=True)]


def draw_map(points, sigma):
    y, x = np.mgrid[:256, :256]
    drawn = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)) for px, py in points)
    return np.clip(drawn, 0, 1).astype(np.float16)


def index_row(sample, one, place):
    row = {name: sample[name] for name in INDEX if name in sample}
    row |= {f"{name}_path": str(place / f"{name}.npy") for name in ("logits_256", "pos_map", "neg_map")}
    return row | {"promptset_id": one["promptset_id"], "k_pairs": one["k_pairs"]}


def leave_runs(root):
    for path in ("checkpoints/no_image/run_v1/best.pt", "laplace/no_image/run_v1/laplace_state.pt"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_bytes(b"weights")
    write_json(root / "checkpoints/no_image/run_v1/epoch_state.json", {"epoch": 3, "best_iou": 0.7})


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
