"""A head and its posterior as one thing that answers: logits, probabilities, uncertainty, samples of whole masks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.finite import refuse_not_finite
from sam_laplace_assets.domain.geometry import LOW_RES
from sam_laplace_assets.domain.head import frozen_copy, head_inputs
from sam_laplace_assets.domain.last_layer import features_and_logits, jacobian, quick_layout
from sam_laplace_assets.domain.posterior import refuse_foreign
from sam_laplace_assets.domain.predictive import variance_under
from sam_laplace_assets.domain.quantities import Quantities, quantities
from sam_laplace_assets.domain.scaling import scale_logits
from sam_laplace_assets.domain.weight_posterior import WeightPosterior

if TYPE_CHECKING:
    from sam_laplace_assets.domain.posterior import Posterior

INPUT_SHAPE = (3, LOW_RES, LOW_RES)
INPUT_DTYPES = (torch.float16, torch.float32)
CHANNELS = ("SAM's logit", "The positive map", "The negative map")


class Predictor:
    """Predictions for items x, (B, 3, 256, 256) float16 or float32 [SAM's logits, positive map, negative map].

    Items go through the head one at a time: a batch says of each item, bit by bit, what it would say of it alone, and
    only the answers grow with the batch. An x of another shape, dtype or device, or with NaN or infinite values, is a
    ValueError. One thread at a time: the last layer's inputs are caught by a hook.
    """

    def __init__(
        self,
        head: nn.Module,
        posterior: "Posterior | WeightPosterior",
        *,
        logit_clip: float,
        logit_scale: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take a frozen copy of the head.

        Args:
            head: the one that the posterior was fitted to; another is PosteriorRefused.
            posterior: of laplace-torch, or its mean and covariance; diagonal or full.
            logit_clip: bound on the magnitude of SAM's logits, as in training.
            logit_scale: factor s on every logit that is given: mean times s, variance times s^2, samples times s.
            device: where x will be.
        """
        weights = posterior if isinstance(posterior, WeightPosterior) else WeightPosterior.of(posterior)
        refuse_foreign(weights.mean, head, target_layer=weights.target_layer)
        if not 0 < logit_clip < float("inf"):
            raise ValueError(f"logit_clip is {logit_clip}. Give the positive number that the head was trained with.")
        if not 0 < logit_scale < float("inf"):
            raise ValueError(f"logit_scale is {logit_scale}. Give a positive number, or 1.0 for logits as they are.")
        self.head = frozen_copy(head, device=device)
        self.weights = weights.to(device)
        self.logit_clip, self.logit_scale = logit_clip, float(logit_scale)
        self.device = next(self.head.parameters()).device

    @torch.no_grad()
    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each pixel's logit, (B, 256, 256) float32 each; the variance in squared logits."""
        pairs = [(logits, variance_under(self.weights.scale, features)) for features, logits in self._items(x)]
        means, variances = zip(*pairs, strict=True)
        return scale_logits(torch.cat(means), torch.cat(variances), self.logit_scale)

    def quantities(self, x: Tensor) -> Quantities:
        """Probability, entropies and mutual information in nats, (B, 256, 256) float64 each, by quadrature."""
        return quantities(*self.logits(x))

    def probability(self, x: Tensor) -> Tensor:
        """E[sigmoid(logit)] over the posterior, (B, 256, 256) float64, by quadrature."""
        return self.quantities(x).probability

    @torch.no_grad()
    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Logits under S = n draws of the weights, each draw the same for all pixels and items.

        Args:
            x: B items.
            n: how many draws, 1 or more.
            generator: on any device; from the same state it draws the same weights.

        Returns:
            (S, B, 256, 256) float32.
        """
        if n < 1:
            raise ValueError(f"Cannot draw {n} samples. Ask for one or more.")
        items = self._items(x)
        deviations = self.weights.deviations(n, generator)
        samples = torch.empty(n, len(x), LOW_RES, LOW_RES, device=self.device)
        for i, (features, logits) in enumerate(items):
            samples[:, i] = logits + (deviations @ jacobian(features)).reshape(-1, LOW_RES, LOW_RES)
        return samples.mul_(self.logit_scale)

    def _items(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (1, C, H, W) and outputs (1, H, W) of the last layer for each item, once all items are checked."""
        self._refuse_unusable(x)
        inputs = (quick_layout(head_inputs(item, logit_clip=self.logit_clip)) for item in torch.split(x, 1))
        return (features_and_logits(self.head, one, target_layer=self.weights.target_layer) for one in inputs)

    def _refuse_unusable(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1:] != INPUT_SHAPE or not len(x):
            raise ValueError(f"x is {tuple(x.shape)}. Give (B, 3, {LOW_RES}, {LOW_RES}) with one item or more.")
        if x.dtype not in INPUT_DTYPES:
            raise ValueError(f"x is {x.dtype}. Give float16 or float32.")
        if x.device != self.device:
            raise ValueError(f"x is on {x.device}, the predictor on {self.device}. Move one of them.")
        for values, what in zip(x.unbind(1), CHANNELS, strict=True):
            refuse_not_finite(values, what=what, advice="Compute this item again, or leave it out.")
