"""Stopped and resumed training equals uninterrupted training, bit by bit; endings and failures say why."""

import copy
import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sam_laplace_assets.domain.head import build_head, head_inputs, restore_head
from sam_laplace_assets.domain.learner import HISTOGRAM_BINS, row_losses
from sam_laplace_assets.domain.metrics import dice, iou
from sam_laplace_assets.domain.training import TrainingDiverged, TrainingState, train
from sam_laplace_assets_tests.domain.some_rows import some_rows

ROWS, VALIDATION = some_rows(10, seed=1), some_rows(6, seed=2)
SETTINGS = {
    "batch_size": 4,
    "num_epochs": 4,
    "lr": 0.01,
    "weight_decay": 1e-4,
    "dice_lambda": 0.5,
    "amp": True,
    "early_stop_patience": 0,
    "logit_clip": 20.0,
    "seed": 0,
    "hidden_channels": 16,
    "channels_in": 3,
}


def epochs(*, state=None, rows=ROWS, **overrides):
    return list(train(rows, VALIDATION, state=state, **(SETTINGS | overrides)))


def assert_same(one, two, path=""):
    """Equality of everything but seconds and histograms, bit by bit."""
    assert type(one) is type(two), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one.keys() - {"seconds"}:
            assert_same(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    else:
        assert one == two, path


def assert_same_state(one, two):
    for field in fields(TrainingState):
        if field.name != "histograms":
            assert_same(getattr(one, field.name), getattr(two, field.name), field.name)


@pytest.fixture(scope="module")
def uninterrupted():
    return epochs()


@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_resuming_after_any_epoch_is_a_run_that_never_stopped(uninterrupted, stopped_after):
    torch.manual_seed(1234 + stopped_after)
    resumed = epochs(state=uninterrupted[stopped_after - 1])
    assert [state.epoch for state in resumed] == list(range(stopped_after + 1, 5))
    for one, two in zip(uninterrupted[stopped_after:], resumed, strict=True):
        assert_same_state(one, two)


def test_resuming_survives_a_file_and_a_json_record(uninterrupted, tmp_path):
    state = uninterrupted[1]
    tensors = {name: getattr(state, name) for name in ("head", "optimizer", "scaler", "best_head")}
    torch.save(tensors, tmp_path / "state.pt")
    record = json.loads(json.dumps(state.record(), allow_nan=False))
    restored = TrainingState(**record, **torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same_state(restored, state)
    assert_same_state(epochs(state=restored)[-1], uninterrupted[-1])


@pytest.mark.parametrize("fused", [True, False])
def test_a_state_that_another_device_saved_is_computed_as_this_one_does(uninterrupted, fused):
    state = copy.deepcopy(uninterrupted[1])
    state.optimizer["param_groups"][0]["fused"] = fused  # True on a GPU
    assert_same_state(epochs(state=state)[-1], uninterrupted[-1])


def test_a_yielded_state_is_not_touched_by_the_epochs_after_it(uninterrupted):
    running = train(ROWS, VALIDATION, **SETTINGS)
    first = next(running)
    list(running)
    assert_same_state(first, uninterrupted[0])


def test_a_finished_state_yields_nothing(uninterrupted):
    assert uninterrupted[-1].finished == "All 4 epochs are done."
    assert not any(state.finished for state in uninterrupted[:-1])
    assert epochs(state=uninterrupted[-1]) == []
    assert epochs(state=replace(uninterrupted[-1], finished=None)) == []


def test_training_lowers_the_loss_and_another_seed_gives_another_head(uninterrupted):
    history = uninterrupted[-1].history
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    other = epochs(seed=1, num_epochs=1)[0]
    assert not torch.equal(other.head["conv1.weight"], uninterrupted[0].head["conv1.weight"])


def test_history_says_what_the_weights_score(uninterrupted):
    state = uninterrupted[-1]
    head, x = restore_head(state.head), head_inputs(VALIDATION.inputs, logit_clip=20.0)
    logits = head(x)[:, 0].detach()
    last = state.history[-1]
    losses = row_losses(logits, VALIDATION.masks, dice_lambda=0.5)
    assert last["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert last["val_iou"] == pytest.approx(iou(logits, VALIDATION.masks).mean().item(), rel=1e-6)
    assert last["val_dice"] == pytest.approx(dice(logits, VALIDATION.masks).mean().item(), rel=1e-6)
    assert [entry["epoch"] for entry in state.history] == [1, 2, 3, 4]
    expected = {"epoch", "train_loss", "val_loss", "val_iou", "val_dice", "best_iou", "lr", "patience_left", "seconds"}
    assert set(last) == expected


def test_the_best_head_is_that_of_the_first_epoch_with_the_highest_validation_iou(uninterrupted):
    state = uninterrupted[-1]
    ious = [entry["val_iou"] for entry in state.history]
    assert state.best_iou == max(ious)
    assert state.best_epoch == ious.index(max(ious)) + 1
    assert_same(state.best_head, uninterrupted[state.best_epoch - 1].head)
    assert state.epochs_without_improvement == 4 - state.best_epoch


def test_one_step_is_plain_adamw_on_the_mean_loss_of_the_batch():
    """Against a loop written out, with the whole batch in one piece."""
    state = epochs(batch_size=10, num_epochs=1)[0]
    head = build_head(channels_in=3, hidden_channels=16, seed=0)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=1e-4)
    loss = row_losses(head(head_inputs(ROWS.inputs, logit_clip=20.0))[:, 0], ROWS.masks, dice_lambda=0.5).mean()
    loss.backward()
    optimizer.step()
    assert state.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in head.state_dict().items():
        torch.testing.assert_close(state.head[name], weight, rtol=1e-3, atol=1e-5)


def test_every_epoch_meets_every_row_once_in_an_order_of_its_own():
    read = []

    class Watched:
        images = ROWS.images

        def __len__(self):
            return len(ROWS)

        def read(self, rows):
            read.append(rows)
            return ROWS.read(rows)

    epochs(rows=Watched(), num_epochs=2)
    first, second = read[:3], read[3:]
    for order in (first, second):
        assert sorted(np.concatenate(order)) == list(range(10))
    assert [list(rows) for rows in first] != [list(rows) for rows in second]


def test_early_stopping_waits_for_its_patience_and_says_why():
    states = epochs(lr=0.0, num_epochs=30, early_stop_patience=3)
    assert [state.epoch for state in states] == [1, 2, 3, 4]
    assert [state.epochs_without_improvement for state in states] == [0, 1, 2, 3]
    assert [entry["patience_left"] for entry in states[-1].history] == [3, 2, 1, 0]
    assert states[-1].finished == "Stopped early: the validation IoU has not risen for 3 epochs."
    assert states[-1].best_epoch == 1


def test_divergence_is_an_error_that_names_the_epoch_and_the_way_out():
    with pytest.raises(TrainingDiverged, match=r"diverged in epoch 1: .* Lower training.lr \(now 1e\+30\)"):
        epochs(lr=1e30, weight_decay=0.0)


def test_divergence_after_a_good_epoch_names_that_epoch(uninterrupted):
    broken = {name: torch.full_like(value, float("nan")) for name, value in uninterrupted[0].head.items()}
    with pytest.raises(TrainingDiverged, match=r"epoch 2: the loss of 10 of 10 rows .* epoch 1 is still good"):
        epochs(state=replace(uninterrupted[0], head=broken))


def test_a_broken_row_is_refused_by_number_and_not_called_divergence():
    rows = some_rows(10, seed=1)
    rows.inputs[7, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="Row 7 ") as caught:
        epochs(rows=rows)
    assert not isinstance(caught.value, TrainingDiverged)


def test_an_empty_pack_is_refused():
    with pytest.raises(ValueError, match="the rows pack has no rows"):
        epochs(rows=replace(ROWS, inputs=ROWS.inputs[:0], masks=ROWS.masks[:0], images=ROWS.images[:0]))


def test_histograms_count_every_weight_and_gradient_and_are_not_in_the_record(uninterrupted):
    state = uninterrupted[-1]
    assert set(state.histograms) == {f"{kind}/{name}" for kind in ("weights", "gradients") for name in state.head}
    for key, histogram in state.histograms.items():
        assert histogram.counts.sum() == state.head[key.split("/")[1]].numel()
        assert len(histogram.edges) == HISTOGRAM_BINS + 1
    assert "histograms" not in state.record()


def test_progress_counts_rows_over_all_epochs():
    seen = []
    epochs(num_epochs=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 20), (8, 20), (10, 20), (14, 20), (18, 20), (20, 20)]
