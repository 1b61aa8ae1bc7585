"""head_checkpoint: a prompt-aware head trained on one training split."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from sam_laplace_assets.assets.pictures import draw_curves, draw_histograms
from sam_laplace_assets.domain.plan import Course, Item, Registered, Report, digest
from sam_laplace_assets.domain.prompts import PromptMix
from sam_laplace_assets.overrides import GO_ON, Overrides
from sam_laplace_assets.partitions import require_training_split, training_splits
from sam_laplace_assets.resources.tracking import model_names
from sam_laplace_assets.settings import Settings, TrainingSettings, load_settings
from sam_laplace_assets.storage.head import PART, HeadRun
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.sam import asked_with

if TYPE_CHECKING:
    from sam_laplace_assets.domain.training import TrainingState

HEAD_VERSION = "1"
NOT_RECORDED = "not recorded"
NOT_IN_ID = {"num_workers", "memory_budget"}  # change how fast, not what


class HeadConfig(Overrides):
    """Launchpad fields of head_checkpoint; with any but sanity_check, the head wins the title only if asked to."""

    label: str | None = Field(None, pattern=r"^[a-z0-9][a-z0-9_-]*$", description="a word in the run's id")
    num_epochs: int | None = Field(None, ge=1, description="epochs at most")
    lr: float | None = Field(None, gt=0, description="learning rate of AdamW")
    batch_size: int | None = Field(None, ge=1, description="rows a step")
    seed: int | None = Field(None, description="seed of weights and row order")
    sanity_check: bool = Field(False, description="first try to overfit a tiny batch, and fail if that cannot be done")


@dg.asset(
    partitions_def=training_splits,
    io_manager_key="head_io",
    retry_policy=GO_ON,
    group_name="model",
    code_version=HEAD_VERSION,
    pool="gpu",
    kinds={"pytorch"},
    ins={"hdf5_pack": dg.AssetIn(partition_mapping=dg.IdentityPartitionMapping())},
)
def head_checkpoint(
    context: dg.AssetExecutionContext, config: HeadConfig, hdf5_pack: Pack, validation_pack: Pack
) -> Course:
    """A small prompt-aware network that refines SAM's logits, trained on one training split."""
    settings = load_settings()
    split = require_training_split(context.partition_key, settings.data)
    return plan_head(split, hdf5_pack, validation_pack, settings, config)


def plan_head(split: str, pack: Pack, validation: Pack, settings: Settings, config: HeadConfig) -> Course:
    """One run, named after all that decides its weights; the same inputs go on with a half-done one."""
    _refuse_trial(pack)
    training = config.over(settings.training)
    made_from = {
        "pack": pack.data_version, "validation_pack": validation.data_version, "head": settings.head.model_dump(),
        "training": training.model_dump(exclude=NOT_IN_ID), "version": HEAD_VERSION,
    }  # fmt: skip
    overrides = config.lasting()
    asked = asked_with(Project.of(settings).sam_cache(split), next(iter(pack.safe_ids), ""))
    described = {**made_from, "overrides": overrides, "prompts": asdict(PromptMix.of(pack.n_pos, pack.n_neg)),
                 "sam": asked}  # fmt: skip
    item = Item(run_name(split, config.label, digest(made_from)), {PART: digest(made_from)}, described)

    def steps(state: "TrainingState | None") -> Iterator["TrainingState"]:
        return train_epochs(state, pack, validation, settings, training, sanity_check=config.sanity_check)

    return Course(
        item, steps=steps, save=save_state, restore=restore_state, step=lambda state: int(state.epoch), follow=follow,
        total=training.num_epochs, finish=overrides,
        report=lambda records: report(item, training, settings),
    )  # fmt: skip


def run_name(split: str, label: str | None, made_from: str) -> str:
    """`<training split>-<label?>-<digest>`."""
    return "-".join(part for part in (split, label, made_from[:12]) if part)


def train_epochs(
    state: "TrainingState | None", pack: Pack, validation: Pack, settings: Settings, training: TrainingSettings, *,
    sanity_check: bool,
) -> Iterator["TrainingState"]:  # fmt: skip
    """The epochs that follow a saved state."""
    from sam_laplace_assets.domain.training import train
    from sam_laplace_assets.resources.checkpoints import resolve_device
    from sam_laplace_assets.storage.rows import read_rows

    device = resolve_device(settings.sam.device)
    rows, judged = (read_rows(one, memory_budget=training.memory_budget) for one in (pack, validation))
    if sanity_check and state is None:
        _require_learnable(rows, settings, training, device=device)
    taken = training.model_dump(exclude=NOT_IN_ID)
    return train(rows, judged, state=state, **taken, **settings.head.model_dump(), device=device)


def _require_learnable(rows: Any, settings: Settings, training: TrainingSettings, *, device: Any) -> None:
    from sam_laplace_assets.domain.sanity import overfits_tiny_batch

    found = overfits_tiny_batch(
        rows, dice_lambda=training.dice_lambda, logit_clip=training.logit_clip, seed=training.seed,
        **settings.head.model_dump(), device=device,
    )  # fmt: skip
    if not found.passed:
        raise ValueError(
            f"Sanity check failed: on a tiny batch the loss went from {found.first_loss:.4f} to {found.last_loss:.4f}, "
            f"where ignoring the inputs gives {found.constant_loss:.4f}. Look at sanity_panels: do masks fit images?"
        )


def _refuse_trial(pack: Pack) -> None:
    if not pack.complete:
        raise dg.Failure(
            f"{pack.path.name} is a trial (`limit`) or lacks failed samples; a head trained on it would look like one "
            f"trained on all. Materialise {pack.split} without `limit` (in a terminal: sam-laplace run "
            "--forget-overrides), or mend the failed samples, first.",
            allow_retries=False,
        )


def save_state(state: "TrainingState") -> Mapping[str, Any]:
    """A state as the store takes it: a state dict a file, and JSON facts."""
    return {"last.pt": state.head, "best.pt": state.best_head, "optimizer_last.pt": state.optimizer,
            "scaler_last.pt": state.scaler, **state.record()}  # fmt: skip


def restore_state(saved: Mapping[str, Any]) -> "TrainingState":
    """The state that was saved."""
    from sam_laplace_assets.domain.training import TrainingState

    names = ("epoch", "best_iou", "best_epoch", "epochs_without_improvement", "history", "finished")
    return TrainingState(head=saved["last.pt"], best_head=saved["best.pt"], optimizer=saved["optimizer_last.pt"],
                         scaler=saved["scaler_last.pt"], **{name: saved[name] for name in names})  # fmt: skip


def follow(state: "TrainingState") -> Report:
    """An epoch's figures, and its weights and gradients as histograms."""
    last = state.history[-1]
    metrics = {name: value for name, value in last.items() if name != "epoch"}
    told = {"train loss": "train_loss", "validation loss": "val_loss", "validation IoU": "val_iou", "best": "best_iou"}
    facts = {"epoch": state.epoch} | {name: f"{last[key]:.4f}" for name, key in told.items()}
    return Report(facts=facts, metrics=metrics, pictures={"histograms": draw_histograms(state.histograms)})


def report(item: Item, training: TrainingSettings, settings: Settings) -> Report:
    """Curves, a table of epochs, and the best weights as a version of the registered model."""
    run = HeadRun.open(Project.of(settings).checkpoints / f"run_{item.key}")
    best = max(run.history, key=lambda record: record["val_iou"])
    facts = {"run": item.key, "best epoch": best["epoch"], "best validation IoU": best["val_iou"],
             "prompts": run.prompts.in_words if run.prompts else NOT_RECORDED,
             "SHA-256 of best.pt": run.best_sha256}  # fmt: skip
    model = Registered(model_names(settings.mlflow)["head"], item.key)
    return Report(facts=facts, params=training.model_dump(), metrics={"best_val_iou": best["val_iou"]}, model=model,
                  tables={"history": list(run.history)}, pictures={"curves": draw_curves(run.history)},
                  files={"head.safetensors": as_safetensors(run.weights()), "config.yaml": _read(run, "config.yaml"),
                         "epoch_state.json": _read(run, "epoch_state.json")})  # fmt: skip


def as_safetensors(weights: Mapping[str, Any]) -> bytes:
    """A state dict as the bytes of a safetensors file."""
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in weights.items()})


def _read(run: HeadRun, name: str) -> bytes:
    return (run.folder / name).read_bytes()
