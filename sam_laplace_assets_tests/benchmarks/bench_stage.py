"""The whole SAM stage, files written, against the plain route and against its own arithmetic."""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, paired

if TYPE_CHECKING:
    from sam_laplace_assets.domain.prompts import PromptSet
    from sam_laplace_assets.resources.sam import SamModel

SETS = 10
SPLIT = "train-bench"
PHOTO = (1000, 1500)
PHOTOS = 2
ROUNDS_OF_PHOTOS = 3
SIGMA = 8.0


@dataclass
class Stage:
    """Images with masks and prompt sets in a project of their own, ready for sam_cache.

    Attributes:
        folder: of the project; its settings are put in force.
        sam: the section of the settings.
    """

    folder: Path
    sam: dict[str, Any]
    counter: "itertools.count[int]" = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        from sam_laplace_assets.settings import SETTINGS_VARIABLE

        roots = {name: name.removesuffix("_root") for name in ("images_root", "masks_root", "splits_root")}
        settings = {"data": {**roots, "project_root": "project"}, "sam": self.sam, "mlflow": {"enabled": False}}
        settings["prompt_generation"] = {"num_promptsets_train": SETS, "gaussian_sigma": SIGMA}
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        os.environ[SETTINGS_VARIABLE] = str(self.folder / "config.yaml")

    def add(self, name: str, image: np.ndarray, mask: np.ndarray) -> None:
        """Put a sample into the split's folder."""
        from PIL import Image

        for kind, array, suffix in (("images", image, ".jpg"), ("masks", mask.astype(np.uint8) * 255, ".png")):
            path = self.folder / "splits" / SPLIT / kind / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)

    def prepare(self) -> None:
        """Make what comes before the SAM stage."""
        for name in ("manifest", "prompt_sets"):
            self._make(name)

    def _make(self, name: str) -> None:
        import dagster as dg

        from sam_laplace_assets.assets.graph import BY_NAME
        from sam_laplace_assets.freshness import _io_manager, wanted_plan
        from sam_laplace_assets.settings import load_settings
        from sam_laplace_assets.storage.materialise import materialise
        from sam_laplace_assets.storage.project import Project

        settings = load_settings()
        with dg.DagsterInstance.ephemeral() as instance:
            plan = wanted_plan(BY_NAME[name], SPLIT, settings, instance, {})
        store = _io_manager(BY_NAME[name]).store(Project.of(settings), SPLIT)
        materialise(plan, store, progress=lambda *_: None)

    def model(self) -> "SamModel":
        """The SAM of the settings, loaded."""
        from sam_laplace_assets.resources.sam import SamResource
        from sam_laplace_assets.settings import load_settings
        from sam_laplace_assets.storage.project import Project

        settings = load_settings()
        model = SamResource().model(settings.sam, Project.of(settings).checkpoint_digests)
        assert model.frozen is not None
        return model

    def run(self, model: "SamModel") -> None:
        """The stage's own work: plan it, ask SAM, write all files of an empty cache."""
        from sam_laplace_assets.assets.sam import plan_sam_cache
        from sam_laplace_assets.settings import load_settings
        from sam_laplace_assets.storage.materialise import materialise
        from sam_laplace_assets.storage.sam import SamStore

        settings = load_settings()
        manifest, prompts = self.views()
        plan = plan_sam_cache(manifest, prompts, model, settings)
        outcome = materialise(plan, SamStore(self._empty() / SPLIT), progress=lambda *_: None)
        assert outcome.made == len(manifest) * SETS

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

    def plain(self, model: "SamModel") -> Callable[[], None]:
        """The plain route on the same images, read from their files, too."""
        from sam_laplace_assets_tests.benchmarks.reference_sam import load_plain, plain_precompute

        sam = load_plain(model.settings.model_type, model.checkpoint)
        manifest, prompts = self.views()
        files = [(Path(sample.images_root) / sample.row["image_path"], prompts.read(sample.key)) for sample in manifest]
        return lambda: plain_precompute(sam, files, self._empty(), sigma=SIGMA)


def photos(folder: Path, **sam: Any) -> Stage:
    """Photo-size images and a vit_b whose weights are drawn from a seed."""
    import torch
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    torch.save(sam_model_registry["vit_b"]().state_dict(), folder / "vit_b.pth")
    stage = Stage(folder, {"model_type": "vit_b", "checkpoint": "vit_b.pth", "device": "cpu", **sam})
    for number in range(PHOTOS):
        stage.add(f"photos/{number}", *_photo(number))
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


def demo(folder: Path) -> Stage:
    """The demo's scenes and the toy SAM, on the CPU."""
    from sam_laplace_assets_tests.benchmarks.findings import scenes

    stage = Stage(folder, {"model_type": "toy", "device": "cpu"})
    for number, one in enumerate(scenes(0, 10)):
        stage.add(f"scenes/{number:03d}", one.sample.image, one.sample.mask)
    stage.prepare()
    return stage
