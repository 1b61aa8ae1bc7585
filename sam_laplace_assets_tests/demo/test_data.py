"""The demo's files are ordinary, whole and the same on every run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sam_laplace_assets.demo.data import make_demo_data
from sam_laplace_assets.demo.files import write_if_changed


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    make_demo_data(root)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def modification_times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def read_mask(path: Path) -> NDArray[np.bool_]:
    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False)
    else:
        with Image.open(path) as image:
            values = np.asarray(image)
    assert values.ndim == 2
    return np.asarray(values > 0)


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_second_run_mends_a_damaged_file_and_leaves_the_others_untouched(root: Path) -> None:
    damaged = root / "images/photos/cell.png"
    before, whole = modification_times(root / "images"), contents(root)
    damaged.write_bytes(damaged.read_bytes()[:100])
    make_demo_data(root)
    after = modification_times(root / "images")
    assert contents(root) == whole
    assert {path for path in before if after[path] != before[path]} == {damaged}


def test_another_place_and_process_get_the_same_bytes(root: Path, tmp_path: Path) -> None:
    code = "import sys, pathlib; from sam_laplace_assets.demo.data import *; make_demo_data(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert contents(tmp_path) == contents(root)


def test_every_image_has_one_mask_of_its_size_with_foreground_and_background(root: Path) -> None:
    images = {path.relative_to(root / "images").with_suffix(""): path for path in (root / "images").rglob("*.*")}
    masks = {path.relative_to(root / "masks").with_suffix(""): path for path in (root / "masks").rglob("*.*")}
    assert images.keys() == masks.keys()
    for name, path in images.items():
        mask = read_mask(masks[name])
        assert mask.shape == image_size(path)[::-1], name
        assert 0 < mask.mean() < 1, name


def test_classes_sizes_and_forms_differ(root: Path) -> None:
    images = list((root / "images").rglob("*.*"))
    classes = [str(path.parent.relative_to(root / "images")) for path in images]
    assert {name: classes.count(name) for name in classes} == {
        "coins": 24,
        "scenes/discs": 24,
        "scenes/polygons": 24,
        "scenes/blobs": 24,
        "photos": 2,
    }
    assert len({image_size(path) for path in images}) > 80
    assert {path.suffix for path in images} == {".jpg", ".png"}
    assert {path.suffix for path in (root / "masks").rglob("*.*")} == {".npy", ".png"}


def test_a_write_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(source: str, target: Path) -> None:
        raise OSError("the machine went away")

    write_if_changed(tmp_path / "a", b"old")
    monkeypatch.setattr("os.replace", die)
    with pytest.raises(OSError, match="went away"):
        write_if_changed(tmp_path / "a", b"new")
    assert contents(tmp_path) == {"a": b"old"}
