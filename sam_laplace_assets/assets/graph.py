"""All assets, each after those that it depends on."""

import dagster as dg

from sam_laplace_assets.assets.active_prompting import active_prompting
from sam_laplace_assets.assets.champion import champion
from sam_laplace_assets.assets.evaluation import evaluation
from sam_laplace_assets.assets.head import head_checkpoint
from sam_laplace_assets.assets.index import training_index
from sam_laplace_assets.assets.manifest import all_samples, manifest
from sam_laplace_assets.assets.pack import hdf5_pack, validation_pack
from sam_laplace_assets.assets.panels import sanity_panels
from sam_laplace_assets.assets.posterior import laplace_posterior
from sam_laplace_assets.assets.prompts import prompt_sets
from sam_laplace_assets.assets.sam import sam_cache
from sam_laplace_assets.assets.scores import prompt_scores
from sam_laplace_assets.assets.sweep import posterior_sweep

ASSETS: tuple[dg.AssetsDefinition, ...] = (
    all_samples, manifest, prompt_sets, sam_cache, training_index, hdf5_pack, sanity_panels, validation_pack,
    head_checkpoint, laplace_posterior, posterior_sweep, champion, evaluation, prompt_scores, active_prompting,
)  # fmt: skip
BY_NAME = {asset.key.to_user_string(): asset for asset in ASSETS}
