"""Fitting, tuning and using the posterior, against plain passes of the head and against laplace-torch's own route."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sam_laplace_assets_tests.benchmarks.drawn import BATCH_SIZE, LOGIT_CLIP, draw_rows, trained_head
from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, paired

if TYPE_CHECKING:
    from sam_laplace_assets.domain.head import PromptHead
    from sam_laplace_assets.domain.pack import MemoryRows

ROWS, VALIDATION_ROWS = 80, 10
GRID = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
POWERS = (-4, 1)
FIT = f"posterior fit and six grid points, {ROWS} training and {VALIDATION_ROWS} validation rows, batch {BATCH_SIZE}"
MAPS, DRAWS, NODES = 4, 50, 64


def posterior_fit(rounds: int) -> Sequence[Row]:
    """Curvature and the whole search against one pass of the head over the same rows."""
    rows, validation, head = _trained()
    return [
        paired(
            "posterior_fit",
            ours(head, rows, validation),
            passes(head, rows, validation),
            what=FIT,
            against="one plain forward pass of the head over these rows",
            target=2.0,
            better="lower",
            rounds=rounds,
        ),
        paired(
            "posterior_fit_own_pass",
            ours(head, rows, validation),
            own_passes(head, rows, validation),
            what=FIT,
            against="one forward pass as this package makes it: channels last, row by row",
            target=None,
            better="lower",
            rounds=rounds,
        ),
    ]


def posterior_library(rounds: int) -> Sequence[Row]:
    """The same posterior and search by laplace-torch itself."""
    rows, validation, head = _trained()
    return [
        paired(
            "posterior_library",
            ours(head, rows, validation),
            library(head, rows, validation),
            what=FIT,
            against="laplace-torch's DiagLaplace.fit and its own grid search over DataLoaders",
            target=5.0,
            better="higher",
            rounds=rounds,
        )
    ]


def information_maps(rounds: int) -> Sequence[Row]:
    """Maps of mutual information against sampled last layers, both held against quadrature with many nodes."""
    import torch

    from sam_laplace_assets.domain.posterior import build_laplace
    from sam_laplace_assets.domain.predictor import Predictor
    from sam_laplace_assets_tests.benchmarks.reference_posterior import sampled_information

    rows, _, head = _trained()
    posterior = build_laplace(head, _curvature(head, rows), prior_precision=1.0)
    predictor = Predictor(head, posterior, logit_clip=LOGIT_CLIP)
    stored, clipped = rows.inputs[:MAPS], _clipped(rows)[:MAPS]
    draws, plain = posterior.sample(DRAWS, generator=torch.Generator().manual_seed(0)), copy.deepcopy(head)
    mean, variance = (each.double() for each in predictor.logits(stored))
    exact = _many_nodes(mean, variance)
    by_rule = predictor.quantities(stored).mutual_information
    by_draws = sampled_information(plain, clipped, draws).double()
    notes = {
        "logit_sd_mean": float(variance.sqrt().mean()),
        "information_mean": float(exact.mean()),
        "ours_off": _off(by_rule, exact),
        "theirs_off": _off(by_draws, exact),
        "off": "mean |error| as a part of the mean information",
    }
    return [
        paired(
            "information_maps",
            lambda: predictor.quantities(stored).mutual_information,
            lambda: sampled_information(plain, clipped, draws),
            what=f"mutual information of every pixel, {MAPS} maps of 256x256",
            against=f"{DRAWS} forward passes of the head with sampled last layers",
            target=20.0,
            better="higher",
            rounds=rounds,
            notes=notes,
        )
    ]


def ours(head: "PromptHead", rows: "MemoryRows", validation: "MemoryRows") -> Callable[[], Any]:
    """The platform's fit and search."""
    from sam_laplace_assets.domain.prior import tune_prior_precision

    def work() -> Any:
        found = _curvature(head, rows)
        return tune_prior_precision(head, found, validation, prior_precision_grid=GRID, logit_clip=LOGIT_CLIP,
                                    batch_size=BATCH_SIZE)  # fmt: skip

    return work


def passes(head: "PromptHead", *packs: "MemoryRows") -> Callable[[], Any]:
    """One plain pass over clipped float32 inputs that lie ready."""
    from sam_laplace_assets_tests.benchmarks.reference_posterior import forward_pass

    ready = [_clipped(rows) for rows in packs]
    return lambda: [forward_pass(head, inputs, batch_size=BATCH_SIZE) for inputs in ready]


def own_passes(head: "PromptHead", *packs: "MemoryRows") -> Callable[[], Any]:
    """The fastest pass that we know on a CPU."""
    import torch

    from sam_laplace_assets_tests.benchmarks.reference_posterior import forward_pass

    ready = [_clipped(rows).contiguous(memory_format=torch.channels_last) for rows in packs]
    return lambda: [forward_pass(head, inputs, batch_size=1) for inputs in ready]


def library(head: "PromptHead", rows: "MemoryRows", validation: "MemoryRows") -> Callable[[], Any]:
    """laplace-torch's fit and search on the same rows."""
    from sam_laplace_assets_tests.benchmarks.reference_posterior import library_route

    ready = [(_clipped(each), each.masks.long()) for each in (rows, validation)]
    return lambda: library_route(copy.deepcopy(head), *ready, grid=POWERS, batch_size=BATCH_SIZE)


def _trained() -> "tuple[MemoryRows, MemoryRows, PromptHead]":
    rows = draw_rows(ROWS)
    head = trained_head(rows, epochs=6)
    return rows, draw_rows(VALIDATION_ROWS, seed=1), head.requires_grad_(False)


def _curvature(head: "PromptHead", rows: "MemoryRows") -> Any:
    from sam_laplace_assets.domain.curvature import fit_curvature

    return fit_curvature(head, rows, logit_clip=LOGIT_CLIP, batch_size=BATCH_SIZE)


def _clipped(rows: "MemoryRows") -> Any:
    from sam_laplace_assets.domain.head import head_inputs

    return head_inputs(rows.inputs, logit_clip=LOGIT_CLIP)


def _many_nodes(mean: Any, variance: Any) -> Any:
    """Mutual information by Gauss-Hermite with `NODES` nodes, in float64."""
    import numpy as np
    import torch

    from sam_laplace_assets_tests.benchmarks.reference_posterior import entropy_of

    p, expected = torch.zeros_like(mean), torch.zeros_like(mean)
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
        at = torch.sigmoid(-mean.abs() + variance.sqrt() * node)
        p, expected = p + weight * at, expected + weight * entropy_of(at)
    return entropy_of(p) - expected


def _off(found: Any, exact: Any) -> float:
    return float((found - exact).abs().mean() / exact.mean())


BENCHMARKS: dict[str, Benchmark] = {
    "posterior_fit": posterior_fit,
    "posterior_library": posterior_library,
    "information_maps": information_maps,
}
