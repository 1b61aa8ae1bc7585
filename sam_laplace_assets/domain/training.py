"""Training of the head: epochs that can be stopped after any one of them and taken up again to the same result."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.head import build_head, is_finite
from sam_laplace_assets.domain.learner import Histogram, Learner, snapshot
from sam_laplace_assets.domain.pack import Progress, Rows, batches


class TrainingDiverged(ValueError):
    """The loss or the weights are no longer finite numbers."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next epoch depends on, after `epoch` epochs; tensors are copies on the CPU.

    Attributes:
        epoch: epochs done.
        head: weights after the last epoch.
        optimizer: AdamW's state.
        scaler: the gradient scaler's state; empty without AMP.
        best_head: weights of the epoch with the best validation IoU.
        best_iou: that IoU, a mean over rows.
        best_epoch: that epoch, counted from 1.
        epochs_without_improvement: epochs since.
        history: a record an epoch: epoch, train_loss, val_loss, val_iou, val_dice (means over rows), best_iou, lr,
            patience_left, seconds.
        finished: why training ended, or None while it has not.
        histograms: of `weights/<name>` and `gradients/<name>`, to be looked at; no part of the state that is saved.
    """

    epoch: int
    head: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    best_head: dict[str, Tensor]
    best_iou: float
    best_epoch: int
    epochs_without_improvement: int
    history: list[dict[str, float]]
    finished: str | None = None
    histograms: dict[str, Histogram] = field(default_factory=dict, compare=False, repr=False)

    def record(self) -> dict[str, Any]:
        """The fields that are not tensors, ready for JSON: `TrainingState(**record, head=..., ...)` is the way back."""
        names = "epoch", "best_iou", "best_epoch", "epochs_without_improvement", "history", "finished"
        return {name: copy.deepcopy(getattr(self, name)) for name in names}


def train(
    rows: Rows,
    validation: Rows,
    *,
    state: TrainingState | None = None,
    batch_size: int,
    num_epochs: int,
    lr: float,
    weight_decay: float,
    dice_lambda: float,
    amp: bool,
    early_stop_patience: int,
    logit_clip: float,
    seed: int,
    hidden_channels: int,
    channels_in: int,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Iterator[TrainingState]:
    """Train with AdamW for `num_epochs`, or until the validation IoU has not risen for `early_stop_patience` of them.

    On one CPU with one number of threads, going on from any state gives the weights, bit by bit, of a run that was
    never stopped: the order of the rows depends on (seed, epoch) alone, and the optimizer's and the scaler's states
    come along.

    Args:
        rows: rows to learn from.
        validation: rows whose mean IoU decides which epoch is best.
        state: where an earlier run stopped; None begins.
        amp: float16 autocast with gradient scaling where there is CUDA; elsewhere it changes nothing.
        early_stop_patience: epochs without improvement after which training ends; 0 never ends early.
        progress: called with (rows done, rows in all epochs) after each batch.

    Yields:
        The state after each epoch. A finished state, or one that has done `num_epochs`, yields nothing.
    """
    _refuse_empty(rows=rows, validation=validation)
    if state is not None and (state.finished or state.epoch >= num_epochs):
        return
    head = build_head(channels_in=channels_in, hidden_channels=hidden_channels, seed=seed).to(device)
    learner = Learner(head, lr=lr, weight_decay=weight_decay, dice_lambda=dice_lambda, amp=amp, logit_clip=logit_clip)
    if state is not None:
        learner.load(head=state.head, optimizer=state.optimizer, scaler=state.scaler)
    for epoch in range(state.epoch if state else 0, num_epochs):
        started = time.perf_counter()
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        report = _counter(progress, start=epoch * len(rows), total=num_epochs * len(rows))
        read = partial(batches, batch_size=batch_size, device=learner.device)
        losses = learner.epoch(read(rows, order=order), report=report)
        _refuse_divergence(head, losses, epoch=epoch + 1, lr=lr)
        measured = {"train_loss": float(losses.mean()), **learner.validate(read(validation))}
        measured |= {"lr": lr, "seconds": time.perf_counter() - started}
        state = _advance(state, learner, measured, early_stop_patience=early_stop_patience, num_epochs=num_epochs)
        yield state
        if state.finished:
            return


def _advance(
    state: TrainingState | None,
    learner: Learner,
    measured: dict[str, float],
    *,
    early_stop_patience: int,
    num_epochs: int,
) -> TrainingState:
    """The state after one more epoch that measured this."""
    epoch, weights = (state.epoch if state else 0) + 1, snapshot(learner.head.state_dict())
    best_head, best_iou, best_epoch = weights, measured["val_iou"], epoch
    if state is not None and measured["val_iou"] <= state.best_iou:
        best_head, best_iou, best_epoch = state.best_head, state.best_iou, state.best_epoch
    waited = epoch - best_epoch
    entry = {"epoch": epoch, **measured, "best_iou": best_iou, "patience_left": early_stop_patience - waited}
    return TrainingState(
        epoch=epoch,
        head=weights,
        optimizer=snapshot(learner.optimizer.state_dict()),
        scaler=snapshot(learner.scaler.state_dict()),
        best_head=best_head,
        best_iou=best_iou,
        best_epoch=best_epoch,
        epochs_without_improvement=waited,
        history=[*(state.history if state else []), entry],
        finished=_why_finished(epoch, waited, early_stop_patience=early_stop_patience, num_epochs=num_epochs),
        histograms=learner.histograms(),
    )


def _why_finished(epoch: int, waited: int, *, early_stop_patience: int, num_epochs: int) -> str | None:
    if 0 < early_stop_patience <= waited:
        return f"Stopped early: the validation IoU has not risen for {waited} epochs."
    return f"All {num_epochs} epochs are done." if epoch >= num_epochs else None


def _counter(progress: Progress | None, *, start: int, total: int) -> Callable[[int], None]:
    """What adds up batches for `progress`."""
    done = start

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return report


def _refuse_empty(**packs: Rows) -> None:
    for name, rows in packs.items():
        if not len(rows):
            raise ValueError(f"Cannot train: the {name} pack has no rows. Materialise its split with samples first.")


def _refuse_divergence(head: nn.Module, losses: Tensor, *, epoch: int, lr: float) -> None:
    broken = int((~torch.isfinite(losses)).sum())
    if broken or not is_finite(head):
        found = f"the loss of {broken} of {len(losses)} rows is not finite" if broken else "a weight is not finite"
        raise TrainingDiverged(
            f"Training diverged in epoch {epoch}: {found}. "
            f"Lower training.lr (now {lr:g}), or turn training.amp off; the state of epoch {epoch - 1} is still good."
        )
