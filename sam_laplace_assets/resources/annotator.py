"""What an annotation tool holds: SAM, the champion and the images that are being clicked on. No Dagster is needed."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.domain.prompts import Point, PromptSet
from sam_laplace_assets.domain.scores import NextPoint, Rule, maps_of, next_points
from sam_laplace_assets.settings import SamSettings, Settings, load_settings
from sam_laplace_assets.storage import files, images
from sam_laplace_assets.storage.champion import is_there, require_champion
from sam_laplace_assets.storage.posterior import META, STATE, PosteriorRun, open_predictor
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.store import NotMade

if TYPE_CHECKING:
    from sam_laplace_assets.domain.answering import Answer, Answerer
    from sam_laplace_assets.domain.prediction import Prediction
    from sam_laplace_assets.domain.sam import Embedding

KEPT_EMBEDDINGS = 8
"""Images whose embedding is kept: 4 MiB each of SAM's own models (256 x 64 x 64 float32), 128 KiB of the toy."""

Image = NDArray[np.uint8] | str | Path
Click = tuple[float, float, Any]


@dataclass(frozen=True)
class Identity:
    """What answers come from.

    Attributes:
        run_id: of the posterior.
        state_sha256: of its file.
        logit_scale: factor on its logits.
        sam_checkpoint: SAM's file.
        sam_sha256: of that file.
        model_type: of that SAM.
        gaussian_sigma: of the point maps, 256x256 pixels.
    """

    run_id: str
    state_sha256: str
    logit_scale: float
    sam_checkpoint: str
    sam_sha256: str
    model_type: str
    gaussian_sigma: float


class Annotator:
    """Answers clicks on images: where to click next, and the calibrated mask.

    The embeddings of the last `KEPT_EMBEDDINGS` images are kept, by content, so only the first click on an image waits
    for SAM's encoder. Calls from several threads wait for each other.
    """

    def __init__(self, answerer: "Answerer", *, rule: Rule, identity: Identity) -> None:
        self._answerer, self.rule, self.identity = answerer, rule, identity
        self._embeddings: OrderedDict[str, Embedding] = OrderedDict()
        self._lock = Lock()

    def suggest_prompts(
        self, image: Image, points_so_far: Sequence[Click], n: int | None = None, *, strategy: str | None = None
    ) -> tuple[NextPoint, ...]:
        """The next points to click, best first, with the label that the model expects and their scores.

        Args:
            image: (H, W, 3) uint8 RGB, or the path of a JPEG or PNG.
            points_so_far: (x, y, label) of each click, in pixels of the image with centres at whole numbers; the label
                is 1 or True on the object, 0 or False beside it. One at least: SAM says nothing without a click.
            n: how many at most; as in the settings if None.
            strategy: what scores a pixel; as in the settings if None.

        Raises:
            ValueError: no click, one outside the image or with another label, or an unknown strategy.
        """
        count = self.rule.suggestions if n is None else n
        if count < 1:
            raise ValueError(f"Cannot suggest {n} points: ask for one or more.")
        rule = replace(self.rule, suggestions=count, strategy=strategy or self.rule.strategy)
        pixels = read(image)
        prompt_set = clicks(points_so_far, pixels.shape[:2])
        maps = maps_of(self._answer(pixels, prompt_set))
        return next_points(maps, prompt_set, rule=rule, image_size=(pixels.shape[0], pixels.shape[1]),
                           stream_name=str([prompt_set.pos, prompt_set.neg]))  # fmt: skip

    def predict(self, image: Image, points: Sequence[Click]) -> "Prediction":
        """The calibrated mask, probability, entropy and mutual information at the image's size.

        Args:
            image, points: as in `suggest_prompts`.
        """
        from sam_laplace_assets.domain.prediction import predict

        pixels = read(image)
        answer = self._answer(pixels, clicks(points, pixels.shape[:2]))
        return predict(answer, (pixels.shape[0], pixels.shape[1]))

    def _answer(self, image: NDArray[np.uint8], prompt_set: PromptSet) -> "Answer":
        with self._lock:
            (answer,) = self._answerer.answer(self._embedding(image), [prompt_set])
        return answer

    def _embedding(self, image: NDArray[np.uint8]) -> "Embedding":
        key = images.pixel_digest(image)
        if key not in self._embeddings:
            self._embeddings[key] = self._answerer.embed(image)
            while len(self._embeddings) > KEPT_EMBEDDINGS:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(key)
        return self._embeddings[key]


def read(image: Image) -> NDArray[np.uint8]:
    """The pixels of an image, upright; an array is taken as it is. Raises `UnreadableFile` or ValueError."""
    if isinstance(image, str | Path):
        return images.read_image(Path(image))
    found = np.asarray(image)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or 0 in found.shape:
        raise ValueError(f"The image is {found.dtype} of shape {found.shape}: give (H, W, 3) uint8 RGB, or a path.")
    return found


def clicks(points: Iterable[Click], size: tuple[int, ...]) -> PromptSet:
    """Clicks (x, y, label) on an image of (H, W) pixels as a prompt set; each falls on the pixel it is nearest to.

    Raises:
        ValueError: there is none, or one that is not on the image; names it.
    """
    sides: dict[bool, list[Point]] = {True: [], False: []}
    for point in points:
        x, y, label = _parts(point)
        place = (math.floor(x + 0.5), math.floor(y + 0.5))
        if not (0 <= place[0] < size[1] and 0 <= place[1] < size[0]):
            raise ValueError(f"Point (x, y) = ({x:g}, {y:g}) lies outside the image of {size[1]} x {size[0]} pixels "
                             f"(W x H): x goes from 0 to {size[1] - 1}, y to {size[0] - 1}.")  # fmt: skip
        sides[label].append(place)
    if not any(sides.values()):
        raise ValueError("There is no click yet, and SAM says nothing without one: give (x, y, 1) on the object first.")
    return PromptSet(0, tuple(sides[True]), tuple(sides[False]))


def _parts(point: Click) -> tuple[float, float, bool]:
    try:
        x, y, label = point
        numbers = float(x), float(y), float(label)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{point!r} is no click: give (x, y, label), the label 1 on the object and 0 beside it."
        ) from (error)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{point!r} is no click: its numbers are not finite.")
    if numbers[2] not in (0, 1):
        raise ValueError(f"Label {numbers[2]:g} of {point!r} is neither 1, on the object, nor 0, beside it.")
    return numbers[0], numbers[1], bool(numbers[2])


def load_annotator(
    posterior: str | Path | None = None, *, settings: Settings | None = None, device: str | None = None
) -> Annotator:
    """SAM of the settings with a posterior, ready for clicks.

    Args:
        posterior: a run id of the project, or a posterior's folder; the champion if None.
        settings: those in force if None.
        device: auto, cuda or cpu; as in the settings if None.

    Raises:
        NotMade: there is no champion, or no such posterior; names those that are there.
        ValueError: the settings, SAM's checkpoint or the posterior's files are not as they should be, or the head was
            trained on another SAM or another gaussian_sigma.
    """
    from sam_laplace_assets.domain.answering import Answerer
    from sam_laplace_assets.resources.checkpoints import load_frozen_sam, resolve_device

    settings = settings or load_settings()
    folder = posterior_folder(posterior, settings)
    run, checkpoint = PosteriorRun.open(folder), checkpoint_of(settings.sam)
    target, sigma = resolve_device(device or settings.sam.device), settings.prompt_generation.gaussian_sigma
    sam = load_frozen_sam(settings.sam.model_type, checkpoint, device=target)
    identity = Identity(run.run_id, run.meta["sha256"][STATE], run.logit_scale, str(checkpoint),
                        files.file_sha256(checkpoint), settings.sam.model_type, sigma)  # fmt: skip
    run.refuse_other_sam(checkpoint_sha256=identity.sam_sha256, gaussian_sigma=sigma)
    answerer = Answerer(sam, open_predictor(folder, device=str(target)), gaussian_sigma=sigma)
    return Annotator(answerer, rule=settings.prompting.rule, identity=identity)


def posterior_folder(posterior: str | Path | None, settings: Settings) -> Path:
    """The folder of a posterior that is named by its run id or its folder; the champion's if None. Raises `NotMade`."""
    home = Project.of(settings).posteriors
    if posterior is None:
        return home / f"run_{require_champion(home).run_id}"
    if (Path(posterior) / META).is_file():
        return Path(posterior)
    if isinstance(posterior, Path) or "/" in posterior or not is_there(home, posterior):
        there = sorted(path.parent.name.removeprefix("run_") for path in home.glob(f"run_*/{META}"))
        raise NotMade(f"There is no posterior {posterior}: neither a folder with {META} nor a run id of {home}. "
                      f"Those that are there: {', '.join(there) or 'none'}.")  # fmt: skip
    return home / f"run_{posterior}"


def checkpoint_of(sam: SamSettings) -> Path:
    """The checkpoint's file; the packaged one for a toy without any."""
    if sam.checkpoint is not None:
        return sam.checkpoint
    from sam_laplace_assets.demo.toy_sam import TOY_CHECKPOINT

    return TOY_CHECKPOINT


_in_force: dict[str, Annotator] = {}
_loading = Lock()


def annotator_in_force() -> Annotator:
    """The annotator of the settings in force, loaded once; anew when the settings or the champion have changed."""
    settings = load_settings()
    champion = Project.of(settings).posteriors / "champion.json"
    now = f"{settings.source}:{files.signature(settings.source)}:{files.signature(champion)}"
    with _loading:
        if now not in _in_force:
            loaded = load_annotator(settings=settings)
            _in_force.clear()
            _in_force[now] = loaded
        return _in_force[now]
