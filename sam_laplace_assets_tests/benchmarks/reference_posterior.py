"""What the posterior's stages are held against: plain passes of the head, and laplace-torch's own route, in float32.

laplace-torch has no curvature for a convolution with a Bernoulli likelihood, so the wrapper and the backend that it
asks are written here, as its documentation has it; fit, predictive and search are the library's.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@torch.no_grad()
def forward_pass(model: nn.Module, inputs: Tensor, *, batch_size: int) -> None:
    """The head over all rows: inputs (N, 3, H, W) float32, clipped already."""
    for x in torch.split(inputs, batch_size):
        model(x)


@torch.no_grad()
def sampled_information(head: nn.Module, inputs: Tensor, draws: Tensor) -> Tensor:
    """Mutual information (N, H, W) in nats by as many forward passes of the head as there are draws (T, C + 1)."""
    mean, entropy = torch.zeros(()), torch.zeros(())
    for draw in draws.float():
        nn.utils.vector_to_parameters(draw, head.final_conv.parameters())  # type: ignore[union-attr]
        p = torch.sigmoid(head(inputs)[:, 0])
        mean, entropy = mean + p / len(draws), entropy + entropy_of(p) / len(draws)
    return entropy_of(mean) - entropy


def entropy_of(p: Tensor) -> Tensor:
    """Entropy of probabilities in nats."""
    found: Tensor = -torch.special.xlogy(p, p) - torch.special.xlogy(1 - p, 1 - p)
    return found


class PixelClassifier(nn.Module):
    """A head as a classifier of pixels: (B, 3, H, W) to (B * H * W, 2) logits [0, f]; `final_conv` learns."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head.requires_grad_(False)
        self.head.final_conv.requires_grad_(True)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x).flatten()
        return torch.stack([torch.zeros_like(logits), logits], dim=-1)

    @torch.no_grad()
    def jacobian_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features with a 1 behind them, (pixels, C + 1), and logits (pixels,)."""
        seen: list[Tensor] = []
        handle = self.head.final_conv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore
        logits = self.head(x).flatten()
        handle.remove()
        features = seen[0].permute(0, 2, 3, 1).flatten(0, 2)
        return torch.cat([features, torch.ones(len(features), 1)], dim=1), logits


def pixel_ggn() -> type:
    """The backend that laplace-torch asks for the GGN and the Jacobians."""
    from laplace.curvature import GGNInterface

    class PixelGGN(GGNInterface):  # type: ignore[misc]
        def diag(self, x: Tensor, y: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
            J, f = self.model.jacobian_and_logits(x)
            p = torch.sigmoid(f)
            loss = nn.functional.binary_cross_entropy_with_logits(f, y.flatten().float(), reduction="sum")
            return loss, (p * (1 - p)) @ J.square()

        def jacobians(self, x: Tensor, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
            J, f = self.model.jacobian_and_logits(x)
            return torch.stack([torch.zeros_like(J), J], dim=1), torch.stack([torch.zeros_like(f), f], dim=1)

    return PixelGGN


def library_route(
    head: nn.Module, rows: Sequence[Tensor], validation: Sequence[Tensor], *, grid: tuple[int, int], batch_size: int
) -> Any:
    """DiagLaplace, fitted and searched by laplace-torch itself.

    Args:
        head: float32; it is changed.
        rows, validation: inputs (N, 3, H, W) float32, clipped, and labels (N, H, W) int64.
        grid: powers of ten of the first and the last prior precision; every power between is tried.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from laplace import DiagLaplace

        model = PixelClassifier(head)
        posterior = DiagLaplace(model, "classification", backend=pixel_ggn())
        loaders = [DataLoader(TensorDataset(*each), batch_size=batch_size) for each in (rows, validation)]
        posterior.fit(loaders[0])
        posterior.optimize_prior_precision(
            method="gridsearch", pred_type="glm", link_approx="probit", val_loader=loaders[1],
            log_prior_prec_min=grid[0], log_prior_prec_max=grid[1], grid_size=grid[1] - grid[0] + 1,
        )  # fmt: skip
    return posterior
