"""Jobs: the graph in the pieces that run together."""

import dagster as dg

OF_A_SPLIT = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels")
OF_A_HEAD = ("head_checkpoint", "laplace_posterior")
OF_THE_CHAMPION = ("evaluation", "prompt_scores")
STARTED_BY = "sam_laplace/started_by"  # tag of runs that nobody launched by hand: what did

scan = dg.define_asset_job(
    "scan",
    selection=dg.AssetSelection.assets("all_samples"),
    description="Find all samples below the base roots and give them splits.",
)
prepare_split = dg.define_asset_job(
    "prepare_split",
    selection=dg.AssetSelection.assets(*OF_A_SPLIT),
    description="Make one split ready: its samples, prompts, SAM's answers, HDF5 pack, and panels to look at.",
)
name_validation_pack = dg.define_asset_job(
    "name_validation_pack",
    selection=dg.AssetSelection.assets("validation_pack"),
    description="Let the pack of split val be the judge.",
)
train_and_fit = dg.define_asset_job(
    "train_and_fit",
    selection=dg.AssetSelection.assets(*OF_A_HEAD),
    description="Train the head of one training split and fit its posterior.",
)
choose_champion = dg.define_asset_job(
    "choose_champion",
    selection=dg.AssetSelection.assets("champion"),
    description="Compare the current posteriors with the champion.",
)

roll_back_champion = dg.define_asset_job(
    "roll_back_champion",
    selection=dg.AssetSelection.assets("champion"),
    config={"ops": {"champion": {"config": {"title_to": "previous"}}}},
    description="Give the title back to the posterior that held it before; the one that loses it cannot win it again.",
)
evaluate = dg.define_asset_job(
    "evaluate",
    selection=dg.AssetSelection.assets(*OF_THE_CHAMPION),
    description="Put the champion to use on one split: how far its masks can be trusted, and where to click next.",
)
sweep_posteriors = dg.define_asset_job(
    "sweep_posteriors",
    selection=dg.AssetSelection.assets("posterior_sweep"),
    description="Compare many configurations of the posterior of one head; nothing else launches this.",
)
prompt_actively = dg.define_asset_job(
    "prompt_actively",
    selection=dg.AssetSelection.assets("active_prompting"),
    description="Let click strategies compete on the images of one split; an experiment that nothing else launches.",
)

all_jobs = [scan, prepare_split, name_validation_pack, train_and_fit, choose_champion, evaluate, prompt_actively]
