"""The Laplace posterior of the head's last layer, held by laplace-torch's own classes.

With two logits [0, f] per pixel, softmax cross-entropy is the Bernoulli likelihood, so the library's state, samples and
marginal likelihood are right once it is given the exact GGN. It works on a float64 copy of the head: H grows with the
number of pixels, and a full H in float32 would lose what is small beside it.
"""

import functools
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from sam_laplace_assets.domain.curvature import Curvature, ggn_diagonal, ggn_full
from sam_laplace_assets.domain.head import frozen_copy
from sam_laplace_assets.domain.last_layer import features_and_logits, jacobian, last_layer, last_layer_weights
from sam_laplace_assets.domain.metrics import binary_nll

if TYPE_CHECKING:
    from laplace import DiagLaplace, FullLaplace
    from laplace.curvature import GGNInterface

    Posterior: TypeAlias = DiagLaplace | FullLaplace

APPROX_OF_CLASS = {"DiagLaplace": "diagonal", "FullLaplace": "full"}
ROUNDING = 1e-9
"""An eigenvalue of a full H may be below 0 by this part of the largest one."""


class PosteriorRefused(ValueError):
    """A posterior that cannot be trusted with this head."""


class PixelLogits(nn.Module):
    """A head seen as a classifier of pixels: (B, 3, H, W) to (B * H * W, 2) logits [0, f], in float64.

    It owns a frozen copy of the head, in which only the last layer has gradients: the library would write samples
    into the head's own weights.
    """

    def __init__(self, head: nn.Module, *, target_layer: str) -> None:
        super().__init__()
        self.head = frozen_copy(head, device="cpu").double()
        self.target_layer = target_layer
        last_layer(self.head, target_layer).requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x.double()).flatten()
        return torch.stack([torch.zeros_like(logits), logits], dim=-1)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, C, H, W) and outputs (B, H, W) of the last layer, without gradients."""
        with torch.no_grad():
            return features_and_logits(self.head, x.double(), target_layer=self.target_layer)


@functools.cache
def import_laplace() -> Any:
    """laplace-torch, without the deprecations that its own imports meet in current PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import laplace
        import laplace.curvature
    return laplace


@functools.cache
def bernoulli_pixel_ggn() -> "type[GGNInterface]":
    """The curvature backend that laplace-torch asks for GGN and Jacobians of `PixelLogits`."""
    interface: Any = import_laplace().curvature.GGNInterface

    class BernoulliPixelGGN(interface):  # type: ignore[misc]
        """Exact where the library's own backends are wrong, crash, or ask for 69 GB."""

        def diag(self, x: Tensor, y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            features, logits = self.model.features_and_logits(x)
            return binary_nll(logits, y.bool()).sum(), ggn_diagonal(features, logits)

        def full(self, x: Tensor, y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            features, logits = self.model.features_and_logits(x)
            return binary_nll(logits, y.bool()).sum(), ggn_full(features, logits)

        def jacobians(self, x: Tensor, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
            """(pixels, 2, P) derivatives and (pixels, 2) logits of [0, f]."""
            features, logits = self.model.features_and_logits(x)
            of_f = jacobian(features).T
            flat = logits.flatten()
            return torch.stack([torch.zeros_like(of_f), of_f], 1), torch.stack([torch.zeros_like(flat), flat], 1)

    return BernoulliPixelGGN


def build_laplace(
    head: nn.Module,
    curvature: Curvature,
    *,
    prior_precision: float,
    temperature: float = 1.0,
) -> "Posterior":
    """laplace-torch's posterior with this curvature: precision H / T + prior_precision around the head's weights.

    Args:
        head: the head that the curvature was taken at.
        curvature: also says which layer, and whether the posterior is diagonal or full.
        prior_precision: of a normal prior around 0, the same for every parameter.
        temperature: T, as `resolve_temperature` gives it.

    Returns:
        A DiagLaplace or FullLaplace on the CPU in float64; `n_data` counts pixels, the likelihood's terms.
    """
    if not 0 < prior_precision < float("inf"):
        raise ValueError(f"prior_precision is {prior_precision}. A posterior needs a positive one.")
    refuse_foreign(curvature.weights, head, target_layer=curvature.target_layer)
    laplace = _empty_laplace(head, curvature.approx, target_layer=curvature.target_layer, temperature=temperature)
    laplace.prior_precision = float(prior_precision)
    laplace.mean, laplace.H = curvature.weights.clone(), curvature.hessian.clone()
    laplace.loss, laplace.n_data, laplace.n_outputs = curvature.nll, curvature.n_pixels, 2
    return laplace


def restore_laplace(head: nn.Module, state: Mapping[str, Any], *, target_layer: str = "final_conv") -> "Posterior":
    """The posterior that `laplace.state_dict()` was taken from; samples come out bit by bit as before.

    Raises:
        PosteriorRefused: the state is incomplete, not finite, has negative curvature, or belongs to another head.
    """
    refuse_broken(state)
    refuse_foreign(state["mean"], head, target_layer=target_layer)
    approx = APPROX_OF_CLASS[state["cls_name"]]
    laplace = _empty_laplace(head, approx, target_layer=target_layer, temperature=state["temperature"])
    laplace.load_state_dict(dict(state))
    return laplace


def refuse_broken(state: Mapping[str, Any]) -> None:
    """PosteriorRefused unless the state is whole, finite and has a curvature that is nowhere negative."""
    missing = {"mean", "H", "loss", "prior_precision", "temperature", "cls_name"} - set(state)
    if missing or state["cls_name"] not in APPROX_OF_CLASS:
        found = f"it lacks {sorted(missing)}" if missing else f"it is a {state['cls_name']}"
        raise PosteriorRefused(f"Not a posterior of this platform: {found}. Materialise laplace_posterior again.")
    for name in "mean", "H", "loss", "prior_precision", "temperature":
        if not torch.isfinite(torch.as_tensor(state[name])).all():
            raise PosteriorRefused(f"The posterior's {name} is not finite. Materialise laplace_posterior again.")
    if state["temperature"] <= 0 or (state["prior_precision"] <= 0).any():
        raise PosteriorRefused("The posterior's temperature or prior precision is not positive. Fit it again.")
    _refuse_negative(state["H"], shape=(len(state["mean"]),) * (1 if state["cls_name"] == "DiagLaplace" else 2))


def _refuse_negative(H: Tensor, *, shape: tuple[int, ...]) -> None:
    if H.shape != shape:
        raise PosteriorRefused(f"The posterior's H is {tuple(H.shape)}, not {shape}. Fit it again.")
    eigenvalues = H if H.ndim == 1 else torch.linalg.eigvalsh(H.double())
    lowest, highest = float(eigenvalues.min()), float(eigenvalues.abs().max())
    asymmetric = H.ndim == 2 and not torch.allclose(H, H.T, rtol=0, atol=ROUNDING * highest)
    if lowest < (0 if H.ndim == 1 else -ROUNDING * highest) or asymmetric:
        raise PosteriorRefused(
            f"The posterior's H is no curvature: its lowest value is {lowest:g}"
            f"{' and it is not symmetric' if asymmetric else ''}. Materialise laplace_posterior again."
        )


def refuse_foreign(mean: Tensor, head: nn.Module, *, target_layer: str) -> None:
    """PosteriorRefused unless the posterior's mean (P,) is the head's last layer, bit by bit."""
    weights = last_layer_weights(head, target_layer=target_layer)
    if not torch.equal(mean.detach().double().cpu(), weights):
        raise PosteriorRefused(
            f"The posterior belongs to another head: its mean is not this head's {target_layer}. "
            "Take the checkpoint that it was fitted to, or fit a posterior to this one."
        )


def _empty_laplace(head: nn.Module, approx: str, *, target_layer: str, temperature: float) -> "Posterior":
    """The temperature is given at birth: FullLaplace keeps a wrong scale when it is changed afterwards."""
    library = import_laplace()
    kind = library.DiagLaplace if approx == "diagonal" else library.FullLaplace
    model = PixelLogits(head, target_layer=target_layer)
    laplace = kind(model, "classification", temperature=float(temperature), backend=bernoulli_pixel_ggn())
    model.output_size = 2  # type: ignore[assignment]
    return laplace
