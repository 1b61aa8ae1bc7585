import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from sam_laplace_assets.demo.toy_sam import load_toy_sam
from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.prompts import gaussian_map
from sam_laplace_assets.storage import images
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets_tests.small_project import BASE


def plain_route(predictor, points):
    """SamPredictor's own answer: (256, 256) float32 logits of the best branch, and that branch."""
    pos, neg = points["pos"], points["neg"]
    coords, labels = np.array([*pos, *neg]), np.array([1] * len(pos) + [0] * len(neg))
    logits, ious, _ = predictor.predict(coords, labels, multimask_output=True, return_logits=True)
    branch = int(ious.argmax())
    full = torch.as_tensor(logits[branch])[None, None]
    low = functional.interpolate(full, (256, 256), mode="bilinear", align_corners=False, antialias=False)
    return low[0, 0].numpy(), branch


@pytest.fixture(scope="module")
def predictor(made_project):
    from segment_anything import SamPredictor

    return SamPredictor(load_toy_sam(made_project.folder / "sam.pt"))


@pytest.mark.parametrize("split", BASE)
def test_the_cache_on_disk_is_sam_predictors_plain_route(made_project, predictor, split):
    cache, compared = made_project.root / "sam_precompute" / split, 0
    for row in read_rows(made_project.paths.manifests, split):
        predictor.set_image(images.read_image(made_project.folder / "images" / row["image_path"]))
        for folder in sorted((cache / row["safe_id"]).iterdir()):
            meta = json.loads((folder / "meta.json").read_text())
            logits, branch = plain_route(predictor, meta["points"])
            stored = np.load(folder / "logits_256.npy")
            assert stored.dtype == np.float16
            assert meta["branch"] == branch
            rounding = np.abs(logits) * 2.0**-11  # of float16
            assert (np.abs(stored.astype(np.float32) - logits) - rounding).max() < 0.02
            compared += 1
    assert compared == {"train": 24, "val": 4, "test": 4}[split]


def test_the_maps_on_disk_are_gaussians_at_the_rescaled_points_of_the_prompt_file(made_project):
    (path, *_) = sorted((made_project.root / "prompt_sets" / "val").glob("*.json"))
    document = json.loads(path.read_text())
    height, width = document["image_h"], document["image_w"]
    for one in document["prompt_sets"]:
        folder = made_project.root / "sam_precompute" / "val" / path.stem / f"promptset_{one['promptset_id']:04d}"
        for side in ("pos", "neg"):
            expected = [[(x + 0.5) * 256 / width - 0.5, (y + 0.5) * 256 / height - 0.5] for x, y in one[side]]
            rescaled = to_low_res(np.array(one[side]), image_h=height, image_w=width)
            np.testing.assert_allclose(rescaled, expected)
            stored = np.load(folder / f"{side}_map.npy")
            np.testing.assert_array_equal(stored, gaussian_map(np.array(expected), sigma=8))
            assert 0 <= stored.min() <= stored.max() <= 1


def test_positive_points_lie_on_the_mask_and_negative_ones_beside_it(made_project):
    for row in read_rows(made_project.paths.manifests, "train"):
        mask = images.read_mask(made_project.folder / "masks" / row["mask_path"])
        document = json.loads((made_project.root / "prompt_sets" / "train" / f"{row['safe_id']}.json").read_text())
        for one in document["prompt_sets"]:
            assert all(mask[y, x] for x, y in one["pos"])
            assert not any(mask[y, x] for x, y in one["neg"])
            assert len(one["pos"]) == len(one["neg"]) == one["k_pairs"]


def test_meta_says_where_the_arrays_come_from(made_project):
    (path, *_) = (made_project.root / "sam_precompute" / "test").rglob("meta.json")
    meta = json.loads(path.read_text())
    assert meta.keys() >= {
        "points", "points_256", "branch", "predicted_ious", "sigma", "dtypes", "logits_size", "sha256", "provenance",
    }  # fmt: skip
    logits = meta["provenance"]["logits"]
    assert logits.keys() >= {"image_digest", "points", "checkpoint_sha256", "model_type", "precision", "version"}
    assert logits["model_type"] == "toy"
    assert meta["provenance"]["maps"].keys() >= {"points", "image_size", "gaussian_sigma", "version"}
