"""The demo's images and masks as ordinary files, the same bytes on every run.

images/<class>/<stem>.png or .jpg   grey or RGB
masks/<class>/<stem>.npy            (H, W) bool, or uint8 with 1 on the object
masks/<class>/<stem>.png            8 bits, 255 on the object
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sam_laplace_assets.demo.files import write_if_changed
from sam_laplace_assets.demo.photos import Sample, cell, coins, horse
from sam_laplace_assets.demo.scenes import Purpose, draw_scene, scene_rng
from sam_laplace_assets.storage import files

DATA_VERSION = 1
SCENE_CLASSES = {"discs": ("disc",), "polygons": ("polygon", "star"), "blobs": ("blob",)}
SCENES_A_CLASS = 24
SIDES = (180, 420)
MIN_FRACTION = 0.015


@dataclass(frozen=True)
class DemoSample:
    """A sample and the files it goes to: `image_name` and `mask_name` are relative to their roots."""

    image_name: str
    mask_name: str
    sample: Sample
    mask_dtype: type[np.bool_] | type[np.uint8] = np.bool_


def make_demo_data(root: Path) -> None:
    """Write about a hundred images and masks below `root`; files that already hold the same bytes stay untouched.

    What was written is listed last, with sizes, in `made.json`: where all of that is there, nothing is drawn again.
    """
    listed = root / "made.json"
    if _is_made(root, listed):
        return
    sizes: dict[str, int] = {}
    for item in demo_samples():
        contents = {
            f"images/{item.image_name}": encode_image(item.sample.image, item.image_name),
            f"masks/{item.mask_name}": encode_mask(item.sample.mask, item.mask_name, item.mask_dtype),
        }
        for name, content in contents.items():
            write_if_changed(root / name, content)
        sizes |= {name: len(content) for name, content in contents.items()}
    files.write_json(listed, {"version": DATA_VERSION, "sizes": sizes})


def _is_made(root: Path, listed: Path) -> bool:
    made = files.read_json(listed) if listed.exists() else {}
    if made.get("version") != DATA_VERSION:
        return False
    return all((root / name).is_file() and (root / name).stat().st_size == size for name, size in made["sizes"].items())


def demo_samples() -> Iterator[DemoSample]:
    """The samples one after the other: coins, then scenes, then the other photographs."""
    for index, coin in enumerate(coins()):
        stem = f"coins/coin_{index:02d}"
        yield DemoSample(f"{stem}.png", f"{stem}.npy", coin)
    for number, name in enumerate(SCENE_CLASSES):
        for index in range(SCENES_A_CLASS):
            yield name_scene(
                f"scenes/{name}/{name[:-1]}_{index:02d}", index, draw_demo_scene(name, 1000 * number + index)
            )
    yield DemoSample("photos/cell.png", "photos/cell.npy", cell())
    yield DemoSample("photos/horse.jpg", "photos/horse.png", horse())


def name_scene(stem: str, index: int, sample: Sample) -> DemoSample:
    """Every third image is a JPEG; the masks take turns at the three forms a mask may have."""
    image_name = f"{stem}.jpg" if index % 3 == 0 else f"{stem}.png"
    mask_name = f"{stem}.png" if index % 4 == 3 else f"{stem}.npy"
    return DemoSample(image_name, mask_name, sample, np.uint8 if index % 4 == 1 else np.bool_)


def draw_demo_scene(name: str, index: int) -> Sample:
    """A scene of any size and aspect ratio, and one of its shapes that is not tiny."""
    rng = scene_rng(Purpose.DEMO, 0, index)
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    while True:
        scene = draw_scene(rng, size=(height, width), kinds=SCENE_CLASSES[name])
        visible = scene.visible(min_fraction=MIN_FRACTION)
        if visible:
            return Sample(scene.image, scene.labels == rng.choice(visible))


def encode_image(image: NDArray[np.uint8], name: str) -> bytes:
    """Bytes of a PNG or JPEG file."""
    from PIL import Image

    buffer = io.BytesIO()
    if name.endswith(".jpg"):
        Image.fromarray(image).save(buffer, format="JPEG", quality=92)
    else:
        Image.fromarray(image).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def encode_mask(mask: NDArray[np.bool_], name: str, dtype: type[np.bool_] | type[np.uint8]) -> bytes:
    """Bytes of an .npy file of this dtype, or of a PNG file with 255 on the object."""
    if name.endswith(".png"):
        return encode_image(mask.astype(np.uint8) * np.uint8(255), name)
    buffer = io.BytesIO()
    np.save(buffer, mask.astype(dtype), allow_pickle=False)
    return buffer.getvalue()
