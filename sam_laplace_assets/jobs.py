"""Jobs: the graph in the pieces that run together."""

import dagster as dg

scan = dg.define_asset_job(
    "scan", selection=["all_samples"], description="Find all samples below the base roots and give them splits."
)
prepare_split = dg.define_asset_job(
    "prepare_split",
    selection=["manifest", "prompt_sets", "sam_cache", "sanity_panels", "training_index", "hdf5_pack"],
    description="From the manifest of one split to its HDF5 pack.",
)
name_validation_pack = dg.define_asset_job(
    "name_validation_pack", selection=["validation_pack"], description="Let the pack of split val be the judge."
)
train_and_fit = dg.define_asset_job(
    "train_and_fit",
    selection=["head_checkpoint", "laplace_posterior"],
    description="Train the head of one training split and fit its posterior.",
)
choose_champion = dg.define_asset_job(
    "choose_champion", selection=["champion"], description="Compare the current posteriors with the champion."
)

all_jobs = [scan, prepare_split, name_validation_pack, train_and_fit, choose_champion]
