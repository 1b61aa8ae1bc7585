"""`sam-laplace init`: a settings file to start from."""

from pathlib import Path

import click

from sam_laplace_assets.storage import files

TEMPLATE = """\
# Settings of sam_laplace_assets. Relative paths are relative to this file's folder.

data:
  images_root: images          # <class>/<stem>.jpg, .jpeg or .png, nested as you like
  masks_root: masks            # <class>/<stem>.npy (2-D, foreground > 0) or .png
  project_root: project        # all outputs are written here
  splits_root: splits          # named splits: <splits_root>/test-underwater/{images,masks}
  split_seed: 123
  # group_by: "^[^/]+/(patient\\d+)"   # what must stay in one split: a regular expression, or file.csv:column
  # splits_file: official.csv         # an official split: columns sample_id, split
  # max_failed_fraction: 0.0          # how many samples may fail before an asset does
  # allow_links_out: false            # whether links below the roots may lead out of them

prompt_generation:
  num_promptsets_train: 10     # prompt sets a sample
  num_promptsets_val: 4
  num_promptsets_test: 4
  mode: pairs                  # pairs | interactive: clicks where a simulated answer is wrong, as in real work
  min_pairs: 1                 # a pair is one positive and one negative point
  max_pairs: 10
  # max_clicks: 20             # of an interactive set, 20 at most; the first one is positive
  # click_jitter: 0.5          # how far from the middle of an error they fall: a share of its depth, below 1
  prompt_seed: 777
  gaussian_sigma: 8            # of the point maps, pixels at 256x256

sam:
  checkpoint: sam_vit_h_4b8939.pth   # of the model type below; leave out for toy
  model_type: vit_h            # vit_h | vit_l | vit_b | toy
  device: auto                 # auto | cuda | cpu
  precision: float32           # float32 | bf16, which is faster and a little different
  # compile: true              # by PyTorch, on a GPU: minutes in each process, then less for each image
  # cache_embeddings: float16  # keep them on disk: other prompts then cost the decoder alone

head:
  channels_in: 3
  hidden_channels: 16

training:
  batch_size: 8
  num_epochs: 30
  lr: 0.001
  weight_decay: 0.0001
  dice_lambda: 0.5
  amp: true                    # mixed precision, where there is a GPU
  early_stop_patience: 5       # epochs without a better validation IoU; 0 never stops early
  logit_clip: 20.0
  seed: 0

laplace:
  target_layer: final_conv
  approx: diagonal             # diagonal | full
  prior_precision_grid: [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]
  likelihood_temperature: 1.0  # a number, or image_cluster

prompting:                     # where to click next; lengths are pixels at 256x256
  strategy: bald_local   # sam-laplace predict --help lists them
  suggestions: 10
  spacing: 16                  # least distance of two suggestions
  border: 0                    # left out along each side
  earlier_radius: 1            # least distance from earlier clicks
  seed: 0                      # of strategies that draw at random

active_prompting:              # the experiment that compares strategies; lengths are pixels at 256x256
  # strategies: [entropy, bald, random, oracle]   # all if left out
  clicks: 20                   # of an interaction, with the first one; 20 at most
  seeds: 1                     # how many, or a list of them
  first_click_jitter: 0        # how far from the object's deepest point the first click may fall
  click_jitter: 0              # how far from the asked point clicks may fall
  border: 0                    # left out along each side
  earlier_radius: 1            # least distance from earlier clicks

mlflow:
  enabled: true
  experiment: laplace-head-sam
  # tracking_uri: http://mlflow.example.org   # default: SQLite in DAGSTER_HOME

storage:
  table_format: parquet        # parquet | csv

automation:
  debounce_seconds: 60         # without a new write before changed data counts as complete
  use_champion_on: [test]      # roles of the splits that get an evaluation and prompt_scores by themselves

alerts:                        # of failed unattended runs and of champion changes, each as JSON
  # command: notify-lab        # on its standard input
  # webhook: https://hooks.example.org/segmentation

# instance: {storage: postgres}   # of Dagster and MLflow, for a team; else SQLite files in DAGSTER_HOME

compute:                       # of sam_cache, prompt_scores and active_prompting; in their own process if left out
  # scheduler: tcp://node1:8786   # Dask's; or: local
  # resources: {GPU: 1}        # what a worker must offer
  chunk_seconds: 120           # about how long a worker is to work on what it is sent at a time

retention:
  runs: 5                      # newest finished runs that gc keeps of each training split, beside those in use
"""


def write_settings(path: Path) -> None:
    """Write the template; a file that is there is never overwritten."""
    if path.exists():
        raise click.ClickException(f"{path} is there already. Move it away, or name another file.")
    files.write_bytes(path, TEMPLATE.encode())
