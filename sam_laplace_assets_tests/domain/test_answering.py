"""An answer is what sam_cache stores, fed to the posterior."""

import numpy as np
import torch

from sam_laplace_assets.domain.answering import Answerer, point_maps
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.resources.checkpoints import load_frozen_sam
from sam_laplace_assets.storage.champion import require_champion
from sam_laplace_assets.storage.manifest import open_manifest
from sam_laplace_assets.storage.posterior import open_predictor
from sam_laplace_assets.storage.prompts import Prompts
from sam_laplace_assets.storage.sam import SamCache, read_array


def test_answers_are_the_stored_arrays_through_the_posterior(read_only):
    project, settings = read_only.paths, read_only.settings
    sam = load_frozen_sam("toy", settings.sam.checkpoint, device="cpu")
    predictor = open_predictor(project.posteriors / f"run_{require_champion(project.posteriors).run_id}")
    answerer = Answerer(sam, predictor, gaussian_sigma=settings.prompt_generation.gaussian_sigma)
    cache = SamCache.open(project.sam_cache("test"), split="test")
    prompts = Prompts.open(project.prompt_sets("test"), split="test")
    manifest = open_manifest(project.manifests, "test", images_root=settings.data.images_root,
                             masks_root=settings.data.masks_root)  # fmt: skip
    assert len(manifest) > 0
    for sample in manifest:
        sets = prompts.read(sample.key)
        embedding = answerer.embed(sample.image())
        answers = [answerer.answer(embedding, [one])[0] for one in sets]  # together, last bits differ
        for cached, answer in zip(cache.sets(sample.key), answers, strict=True):
            stored = [read_array(cache.folder / cached.path(name), sha256=cached.sha256[name])
                      for name in ("logits_256", "pos_map", "neg_map")]  # fmt: skip
            np.testing.assert_array_equal(answer.sam_logits, stored[0])
            mean, variance = predictor.logits(torch.from_numpy(np.stack(stored)[None]))
            np.testing.assert_array_equal(answer.mean, mean[0].numpy())
            np.testing.assert_array_equal(answer.variance, variance[0].numpy())
            np.testing.assert_array_equal(answer.mask, answer.mean > 0)


def test_a_side_without_points_has_an_empty_map():
    pos, neg = point_maps(PromptSet(0, ((3, 4),), ()), (40, 60), sigma=8)
    assert pos.max() > 0.99
    assert not neg.any()
