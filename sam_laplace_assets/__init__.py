"""Calibrated masks from frozen SAM: Dagster assets from images and masks to a Laplace posterior."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam_laplace_assets.domain.predictor import Predictor
    from sam_laplace_assets.domain.scores import NextPoint
    from sam_laplace_assets.resources.annotator import Annotator, Click, Image

__version__ = "0.1.0"
__all__ = ["load_annotator", "load_posterior", "suggest_prompts"]


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


def load_annotator(posterior: str | Path | None = None, *, device: str | None = None) -> "Annotator":
    """SAM and the champion of the settings in force, ready for the clicks of an annotation tool; without Dagster.

    ```python
    annotator = load_annotator()
    annotator.suggest_prompts(image, [(120, 80, 1)])    # where to click next, in pixels of the image
    annotator.predict(image, [(120, 80, 1)]).mask       # also probability, entropy and mutual_information
    ```

    Args:
        posterior: a run id of the project, or a posterior's folder; the champion if None.
        device: auto, cuda or cpu; as in the settings if None.

    Raises:
        NotMade: there is no champion, or no such posterior; names those that are there.
        ValueError: the settings, SAM's checkpoint or the posterior's files are not as they should be.
    """
    from sam_laplace_assets.resources.annotator import load_annotator as load

    return load(posterior, device=device)


def suggest_prompts(
    image: "Image",
    points_so_far: "Sequence[Click]",
    n: int | None = None,
    *,
    strategy: str | None = None,
    annotator: "Annotator | None" = None,
) -> "tuple[NextPoint, ...]":
    """The next points to click on an image, best first, with the label that the model expects and their scores.

    Only the first click on an image waits for SAM's encoder: embeddings are kept between calls, and so are the models.
    They are loaded anew when the settings in force or the champion have changed.

    Args:
        image: (H, W, 3) uint8 RGB, or the path of a JPEG or PNG.
        points_so_far: (x, y, label) of each click, pixels of the image; a label that is true is on the object.
        n: how many at most; as in the settings if None.
        strategy: what scores a pixel; as in the settings if None.
        annotator: another than that of the settings in force.

    Raises:
        NotMade: there is no champion.
        ValueError: no click, one outside the image, or an unknown strategy.
    """
    from sam_laplace_assets.resources.annotator import annotator_in_force

    return (annotator or annotator_in_force()).suggest_prompts(image, points_so_far, n, strategy=strategy)
