"""Files of predictions, read back."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam_laplace_assets.domain.prediction import Prediction
from sam_laplace_assets.storage.files import file_sha256
from sam_laplace_assets.storage.predictions import names_of, write_prediction, write_summary
from sam_laplace_assets_tests.storage.fakes import death


def some_prediction(size=(7, 9)):
    p = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
    return Prediction(p >= 0.5, p, p / 2, p * np.float32(math.log(2)))


@pytest.mark.parametrize("map_format", ["npy", "png"])
def test_maps_and_mask_come_back(tmp_path, map_format):
    given = some_prediction()
    sha256 = write_prediction(tmp_path, "a", given, b"png", map_format=map_format)
    assert {name: file_sha256(tmp_path / name) for name in sha256} == sha256
    assert {path.name for path in tmp_path.iterdir()} == set(sha256)
    with Image.open(tmp_path / "a_mask.png") as mask:
        np.testing.assert_array_equal(np.array(mask) == 255, given.mask)
    if map_format == "npy":
        np.testing.assert_array_equal(np.load(tmp_path / "a_probability.npy"), given.probability)
        np.testing.assert_array_equal(np.load(tmp_path / "a_mutual_information.npy"), given.mutual_information)
    else:
        for name, largest in (("probability", 1), ("mutual_information", math.log(2))):
            with Image.open(tmp_path / f"a_{name}.png") as stored:
                values = np.array(stored).astype(float) / 65_535 * largest
            np.testing.assert_allclose(values, getattr(given, name), atol=1e-5)


def test_a_write_that_dies_leaves_the_files_that_were_there(tmp_path):
    before = write_prediction(tmp_path, "a", some_prediction(), b"old", map_format="npy")
    with death(4):
        write_prediction(tmp_path, "a", some_prediction((5, 5)), b"new", map_format="npy")
    assert {name: file_sha256(tmp_path / name) for name in before} == before


def test_images_of_one_stem_get_names_of_their_own():
    paths = [Path(name) for name in ("x/a.png", "y/a.jpg", "a-2.png", "b.png", "z/a.png", "z/a-2.jpg")]
    names = names_of(paths)
    assert names == ["a", "a-3", "a-2", "b", "a-4", "a-2-2"]
    assert len(set(names)) == len(paths)


def test_the_summary_says_what_was_used_found_and_failed(tmp_path):
    write_summary(tmp_path, {"posterior": {"run_id": "r"}}, [{"image": "a"}], [{"image": "b", "error": "gone"}])
    assert json.loads((tmp_path / "predictions.json").read_text()) == {
        "format": "predictions", "version": 1, "posterior": {"run_id": "r"}, "images": [{"image": "a"}],
        "failed": [{"image": "b", "error": "gone"}],
    }  # fmt: skip
