"""Calibrated masks from frozen SAM: Dagster assets from images and masks to a Laplace posterior."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam_laplace_assets.domain.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["load_posterior"]


def load_posterior(folder: str | Path, *, device: str = "cpu") -> "Predictor":
    """A posterior from its folder alone: `laplace/no_image/run_<id>/`, wherever that lies.

    ```python
    posterior = load_posterior("project/laplace/no_image/run_train-1f0c")
    mean, variance = posterior.logits(x)                # x: (B, 3, 256, 256) [SAM's logits, positive map, negative map]
    uncertainty = posterior.quantities(x)               # probability, entropies, mutual information in nats
    masks = posterior.sample(x, 50, torch.Generator()) > 0
    ```

    Args:
        folder: holds laplace_state.pt, laplace_config.yaml and posterior_meta.json.
        device: where x will be.

    Raises:
        NotMade: there is no posterior.
        Damaged: a file is missing or not the one that was stored, or the head was not kept with it (format version 1).
        PosteriorRefused: state and head do not belong together, or a value is not finite.
    """
    from sam_laplace_assets.storage.posterior import open_predictor

    return open_predictor(Path(folder), device=device)
