"""A project with images, masks and prompt sets, ready for the SAM stage."""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

if TYPE_CHECKING:
    from sam_laplace_assets.domain.prompts import PromptSet
    from sam_laplace_assets.resources.sam import SamModel

SETS = 10
SPLIT = "train-bench"
SIGMA = 8.0
PHOTO = (1000, 1500)


@dataclass
class Stage:
    """Images with masks and prompt sets in a project of their own, ready for sam_cache.

    Attributes:
        folder: of the project; its settings are put in force.
        sam: the section of the settings.
        sets: prompt sets of each sample.
    """

    folder: Path
    sam: dict[str, Any]
    sets: int = SETS
    counter: "itertools.count[int]" = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        from sam_laplace_assets.settings import SETTINGS_VARIABLE

        roots = {name: name.removesuffix("_root") for name in ("images_root", "masks_root", "splits_root")}
        settings = {"data": {**roots, "project_root": "project"}, "sam": self.sam, "mlflow": {"enabled": False}}
        settings["prompt_generation"] = {"num_promptsets_train": self.sets, "gaussian_sigma": SIGMA}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        os.environ[SETTINGS_VARIABLE] = str(self.folder / "config.yaml")

    def add(self, name: str, image: np.ndarray, mask: np.ndarray) -> None:
        """Put a sample into the split's folder."""
        self._write(self.folder / "splits" / SPLIT, name, image, mask)

    def repeat(self, name: str, times: int) -> None:
        """Have a sample under so many more names."""
        for path in (self.folder / "splits" / SPLIT).glob(f"*/{name}.*"):
            for number in range(times):
                path.with_stem(f"{path.stem}-{number:02d}").hardlink_to(path)

    def _write(self, root: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
        from PIL import Image

        for kind, array, suffix in (("images", image, ".jpg"), ("masks", mask.astype(np.uint8) * 255, ".png")):
            path = root / kind / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)

    def prepare(self) -> None:
        """Make what comes before the SAM stage."""
        import dagster as dg

        from sam_laplace_assets_tests.benchmarks.preparing import carry_out, stages

        image, mask = _photo(0)
        self._write(self.folder, "elsewhere/0", image[::16, ::16], mask[::16, ::16])  # the base roots hold something
        with dg.DagsterInstance.ephemeral() as instance:
            for asset, split in stages(("manifest", "prompt_sets"), (SPLIT,)):
                carry_out(asset, split, instance)

    def model(self) -> "SamModel":
        """The SAM of the settings, loaded."""
        from sam_laplace_assets.resources.sam import SamResource
        from sam_laplace_assets.settings import load_settings
        from sam_laplace_assets.storage.project import Project

        settings = load_settings()
        model = SamResource().model(settings.sam, Project.of(settings).checkpoint_digests)
        assert model.frozen is not None
        return model

    def run(self, model: "SamModel", *, embeddings: str | None = None, folder: Path | None = None) -> Path:
        """The stage's own work: plan it, ask SAM, write all files of an empty cache.

        Args:
            model: that is asked.
            embeddings: as what they are kept, and read where they are kept already: in the project's own cache.
            folder: of the cache; a new one if None.
        """
        from sam_laplace_assets.assets.sam import plan_sam_cache
        from sam_laplace_assets.settings import load_settings
        from sam_laplace_assets.storage.materialise import materialise
        from sam_laplace_assets.storage.sam import SamStore

        settings = load_settings()
        sam = settings.sam.model_copy(update={"cache_embeddings": embeddings})
        manifest, prompts = self.views()
        plan = plan_sam_cache(manifest, prompts, model, settings.model_copy(update={"sam": sam}))
        folder = folder or self._empty() / SPLIT
        outcome = materialise(plan, SamStore(folder), progress=lambda *_: None)
        assert outcome.made == len(manifest) * self.sets
        return folder

    @property
    def cache(self) -> Path:
        """The project's own SAM cache."""
        return self.folder / "project" / "sam_precompute" / SPLIT

    def _empty(self) -> Path:
        return self.folder / "caches" / str(next(self.counter))

    def views(self) -> tuple[Any, Any]:
        """The manifest and the prompt sets."""
        from sam_laplace_assets.settings import load_settings
        from sam_laplace_assets.storage.manifest import open_manifest
        from sam_laplace_assets.storage.project import Project, roots_of
        from sam_laplace_assets.storage.prompts import Prompts

        settings = load_settings()
        project, roots = Project.of(settings), roots_of(settings.data, SPLIT)
        manifest = open_manifest(project.manifests, SPLIT, images_root=roots.images_root, masks_root=roots.masks_root)
        return manifest, Prompts.open(project.prompt_sets(SPLIT), split=SPLIT)

    def asked(self) -> "list[tuple[np.ndarray, Sequence[PromptSet]]]":
        """Each image with its prompt sets, as the plain route takes them."""
        manifest, prompts = self.views()
        return [(sample.image(), prompts.read(sample.key)) for sample in manifest]

    def at(self, precision: str) -> "SamModel":
        """The SAM of the settings, loaded at another precision."""
        from dataclasses import replace

        model = self.model()
        return replace(model, settings=model.settings.model_copy(update={"precision": precision}))

    def plain(self, model: "SamModel") -> Callable[[], None]:
        """The plain route on the same images, read from their files, too."""
        from sam_laplace_assets_tests.benchmarks.reference_sam import load_plain, plain_precompute

        sam = load_plain(model.settings.model_type, model.checkpoint).to(model.frozen.device)
        manifest, prompts = self.views()
        files = [(Path(sample.images_root) / sample.row["image_path"], prompts.read(sample.key)) for sample in manifest]
        return lambda: plain_precompute(sam, files, self._empty(), sigma=SIGMA)


def photos(
    folder: Path, *, count: int, model_type: str = "vit_b", sets: int = SETS, copies: int = 1, **sam: Any
) -> Stage:
    """Photo-size images, each under as many names as there are copies, and a SAM with weights drawn from a seed."""
    import torch

    from sam_laplace_assets.resources.checkpoints import build_model

    torch.manual_seed(0)
    torch.save(build_model(model_type).state_dict(), folder / "sam.pth")
    stage = Stage(folder, {"model_type": model_type, "checkpoint": "sam.pth", "device": "cpu", **sam}, sets)
    for number in range(count):
        stage.add(f"photos/{number:04d}", *_photo(number))
        stage.repeat(f"photos/{number:04d}", copies - 1)
    stage.prepare()
    return stage


def _photo(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A drawn photograph: blurred noise in (H, W, 3) uint8 with a bright disc, and the disc."""
    from scipy.ndimage import gaussian_filter

    height, width = PHOTO
    rng = np.random.default_rng(number)
    noise = gaussian_filter(rng.normal(size=(height, width, 3)), (8, 8, 0))
    y, x = np.ogrid[:height, :width]
    disc = np.hypot(y - height * 0.5, x - width * rng.uniform(0.3, 0.7)) < height * 0.2
    ground = 110 + 40 * noise / noise.std() + 60 * disc[..., None]
    return ground.clip(0, 255).astype(np.uint8), disc


def demo(folder: Path, *, device: str = "cpu") -> Stage:
    """The demo's scenes and the toy SAM."""
    from sam_laplace_assets_tests.benchmarks.findings import scenes

    stage = Stage(folder, {"model_type": "toy", "device": device})
    for number, one in enumerate(scenes(0, 10)):
        stage.add(f"scenes/{number:03d}", one.sample.image, one.sample.mask)
    stage.prepare()
    return stage


def difference(ours: Path, theirs: Path) -> dict[str, float]:
    """How far the logits of one cache are from those of another, and how many pixels change sides."""
    names = [path.relative_to(ours) for path in sorted(ours.rglob("logits_256.npy"))]
    mine, other = (np.stack([np.load(folder / name) for name in names]).astype(np.float32) for folder in (ours, theirs))
    return {
        "logit_rms_of_sd": round(float(np.sqrt(np.square(mine - other).mean()) / other.std()), 6),
        "largest_logit_difference": round(float(np.abs(mine - other).max()), 4),
        "pixels_that_change_sides": round(float(((mine > 0) != (other > 0)).mean()), 7),
    }


def mask_ious(stage: Stage, cache: Path) -> np.ndarray:
    """(images,) float64, mean IoU of each image's cached masks with its true one, at 256x256."""
    from sam_laplace_assets.domain.geometry import resize_nearest

    found = []
    for sample in stage.views()[0]:
        truth = resize_nearest(sample.mask(), 256, 256)
        masks = [np.load(path) > 0 for path in sorted((cache / sample.key).rglob("logits_256.npy"))]
        found.append(np.mean([(mask & truth).sum() / max((mask | truth).sum(), 1) for mask in masks]))
    return np.array(found)


def tiny(folder: Path, count: int) -> Stage:
    """Many small scenes and the toy SAM."""
    stage = Stage(folder, {"model_type": "toy", "device": "cpu"}, sets=1)
    image, mask = _photo(0)
    for number in range(count):
        stage.add(
            f"tiny/{number:05d}", np.roll(image, number, axis=1)[::16, ::16], np.roll(mask, number, 1)[::16, ::16]
        )
    stage.prepare()
    return stage
