"""Training of the head against the same loop on tensors that are in memory."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_laplace_assets_tests.benchmarks.drawn import BATCH_SIZE, DICE_LAMBDA, LOGIT_CLIP
from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, paired

if TYPE_CHECKING:
    from sam_laplace_assets.domain.learner import Learner
    from sam_laplace_assets.domain.pack import Rows

ROWS, LR, WEIGHT_DECAY = 160, 1e-3, 1e-4
EPOCH = f"head training, one epoch of {ROWS} rows, batch {BATCH_SIZE}"


def training_epoch(rounds: int) -> Sequence[Row]:
    """An epoch over a pack that was read into memory, and what of it is not the steps themselves."""
    from sam_laplace_assets.domain.pack import batches
    from sam_laplace_assets.storage.rows import load_rows
    from sam_laplace_assets_tests.benchmarks.bench_pack import write_pack

    with tempfile.TemporaryDirectory() as folder:
        rows = load_rows(write_pack(Path(folder), ROWS))
    ready = list(batches(rows, batch_size=BATCH_SIZE, order=_order()))
    return [
        paired(
            "training_epoch",
            ours(rows),
            theirs(rows),
            what=f"{EPOCH}, the pack in memory",
            against="the same loop in plain PyTorch on float32 tensors in memory",
            target=1.05,
            better="lower",
            rounds=rounds,
        ),
        paired(
            "training_loading",
            ours(rows),
            steps(lambda: ready),
            what=f"{EPOCH}, the pack in memory",
            against="our own steps on batches that lie ready",
            target=1.05,
            better="lower",
            rounds=rounds,
        ),
    ]


def training_streamed(rounds: int) -> Sequence[Row]:
    """An epoch over a pack that is read from disk as it goes."""
    from sam_laplace_assets.storage.rows import StreamedRows, load_rows
    from sam_laplace_assets_tests.benchmarks.bench_pack import write_pack

    with tempfile.TemporaryDirectory() as folder:
        pack = write_pack(Path(folder), ROWS)
        return [
            paired(
                "training_streamed",
                ours(StreamedRows(pack)),
                ours(load_rows(pack)),
                what=f"{EPOCH}, rows streamed from the pack",
                against="the same with the pack in memory",
                target=None,
                better="lower",
                rounds=rounds,
            )
        ]


def ours(rows: "Rows") -> Callable[[], Any]:
    """An epoch of the platform's."""
    from sam_laplace_assets.domain.pack import batches

    return steps(lambda: batches(rows, batch_size=BATCH_SIZE, order=_order()))


def steps(read: Callable[[], Iterable[Any]]) -> Callable[[], Any]:
    """The platform's steps over batches."""
    learner = learner_on("cpu", amp=False)
    return lambda: learner.epoch(iter(read()), report=lambda count: None)


def theirs(rows: Any) -> Callable[[], Any]:
    """An epoch of the reference's, on the same rows."""
    import numpy as np
    import torch

    from sam_laplace_assets_tests.benchmarks.reference_training import build_model, train_epoch

    torch.manual_seed(0)
    model, inputs, masks = build_model(), rows.inputs.float(), rows.masks.float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    return lambda: train_epoch(
        model,
        optimizer,
        inputs,
        masks,
        batch_size=BATCH_SIZE,
        dice_lambda=DICE_LAMBDA,
        logit_clip=LOGIT_CLIP,
        rng=np.random.default_rng(0),
    )


def learner_on(device: str, *, amp: bool) -> "Learner":
    """A new head of the default shape, with its optimizer."""
    from sam_laplace_assets.domain.head import build_head
    from sam_laplace_assets.domain.learner import Learner

    head = build_head(channels_in=3, hidden_channels=16, seed=0).to(device)
    return Learner(head, lr=LR, weight_decay=WEIGHT_DECAY, dice_lambda=DICE_LAMBDA, amp=amp, logit_clip=LOGIT_CLIP)


def _order() -> Any:
    import numpy as np

    return np.random.default_rng(0).permutation(ROWS)


BENCHMARKS: dict[str, Benchmark] = {"training_epoch": training_epoch, "training_streamed": training_streamed}
