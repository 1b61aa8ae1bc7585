"""Reading what the original scripts left."""

import json

import numpy as np
import pytest

from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.storage.files import NewerFormat
from sam_laplace_assets.storage.original import NotOriginal, NotTaken, Original

SIZE = (40, 60)
POINTS = {"pos": [[1, 2]], "neg": [[3, 4]]}
SET = PromptSet(0, ((1, 2),), ((3, 4),))


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def original(tmp_path):
    put(tmp_path / "manifests" / "train.csv", "sample_id,split\ncat/1,train\ncat/2,train\n")
    put(tmp_path / "manifests" / "val.csv", "\ufeffsample_id,split\ndog/1,val\n")
    return Original(tmp_path)


def prompts_of(original, document):
    put(original.root / "prompt_sets" / "val" / "dog__1.json", document)
    return original.prompt_sets("val", "dog__1", size=SIZE)


def said_of(original, document):
    put(original.root / "sam_precompute" / "val" / "dog__1" / "promptset_0000" / "meta.json", document)
    return original.said("val", "dog__1", 0)


def test_a_manifest_decides_which_split_a_sample_is_in(original):
    assert original.splits() == {"cat/1": "train", "cat/2": "train", "dog/1": "val"}


def test_a_sample_in_two_manifests_is_refused(original):
    put(original.root / "manifests" / "test.csv", "sample_id\ncat/2\n")
    with pytest.raises(NotOriginal, match=r"lists cat/2, which train.csv lists, too"):
        original.splits()


def test_a_manifest_without_sample_ids_is_refused(original):
    put(original.root / "manifests" / "test.csv", "name\ncat/2\n")
    with pytest.raises(NotOriginal, match=r"test.csv has no column sample_id: its columns are \['name'\]"):
        original.splits()


def test_tables_of_ours_are_no_original(tmp_path):
    put(tmp_path / "manifests" / "train.csv", "sample_id\ncat/1\n")
    put(tmp_path / "manifests" / "train.csv.json", {"format": "manifest"})
    with pytest.raises(NotOriginal, match=r"holds no manifests/train.csv"):
        Original(tmp_path).splits()


def test_what_was_put_aside_is_what_is_read(original):
    put(original.root / "original" / "manifests" / "train.csv", "sample_id\ncat/9\n")
    assert original.splits() == {"cat/9": "train", "dog/1": "val"}


@pytest.mark.parametrize(
    "document",
    [
        {
            "sample_id": "dog/1",
            "image_h": 40,
            "image_w": 60,
            "prompt_sets": [{"promptset_id": 0, "k_pairs": 1, **POINTS}],
        },
        {"promptsets": [{"promptset_id": "promptset_0000", "pos_points": [[1, 2]], "neg_points": [[3, 4]]}]},
        {"prompt_sets": [{"points": POINTS}]},
        [{"id": 0, "positive": [[1.0, 2.0]], "negative": [[3, 4]]}],
    ],
)
def test_prompt_sets_are_read_under_the_names_that_they_may_have(original, document):
    assert prompts_of(original, document) == (SET,)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "is not JSON"),
        ({"prompt_sets": []}, "lists no prompt sets"),
        ({"other": 1}, "lists no prompt sets"),
        ({"prompt_sets": [{"points": [[1, 2]]}]}, "holds no points of pos and neg"),
        ({"prompt_sets": [{"pos": [[1.5, 2]], "neg": [[3, 4]]}]}, "not whole pixels"),
        ({"prompt_sets": [{"pos": [[-1, 2]], "neg": [[3, 4]]}]}, "holds no points of pos and neg"),
        ({"prompt_sets": [POINTS], "image_h": 60, "image_w": 40}, "about an image of 60 x 40 pixels .* has 40 x 60"),
    ],
)
def test_prompt_sets_that_cannot_be_read_say_why(original, document, words):
    with pytest.raises(NotTaken, match=words):
        prompts_of(original, document)


def test_a_file_that_is_not_there_is_named(original):
    with pytest.raises(NotTaken, match=r"its cat__1.json is not there"):
        original.prompt_sets("train", "cat__1", size=SIZE)


def test_a_newer_version_says_what_to_do(original):
    with pytest.raises(NewerFormat, match=r"format version 2, this package reads up to 1. Upgrade"):
        prompts_of(original, {"version": 2, "prompt_sets": [POINTS]})


@pytest.mark.parametrize(
    "document",
    [
        {"points_original": POINTS, "points_256": POINTS, "branch_index": 2, "sigma": 8,
         "iou_predictions": [0.1, 0.2, 0.3]},
        {"points": {"original": POINTS, "rescaled": {}}, "branch": 2, "gaussian_sigma": 8.0,
         "predicted_ious": [0.1, 0.2, 0.3]},
    ],
)  # fmt: skip
def test_meta_is_read_under_the_names_that_its_fields_may_have(original, document):
    said = said_of(original, document)
    assert (said.points, said.branch, said.sigma) == (SET, 2, 8.0)
    assert said.predicted_ious == (0.1, 0.2, 0.3)
    assert said.made_with == {}


def test_meta_may_say_what_it_was_made_with(original):
    said = said_of(original, {"points": POINTS, "sam_checkpoint": "/x/sam.pth", "model_type": "vit_b"})
    assert said.made_with == {"checkpoint": "/x/sam.pth", "model_type": "vit_b"}
    assert said.branch is None


@pytest.mark.parametrize(
    "document", [{"format": "sam_cache", "points": POINTS}, [1], {"points": POINTS, "branch": "x"}]
)
def test_a_meta_that_is_not_the_originals_is_refused(original, document):
    with pytest.raises(NotTaken, match=r"meta.json"):
        said_of(original, document)


def test_an_array_comes_with_its_file_and_a_damaged_one_is_named(original):
    path = original.root / "sam_precompute" / "val" / "dog__1" / "promptset_0003" / "pos_map.npy"
    with pytest.raises(NotTaken, match=r"its pos_map.npy is not there"):
        original.array("val", "dog__1", 3, "pos_map")
    path.parent.mkdir(parents=True)
    np.save(path, np.ones((2, 2), np.float16))
    found, array, _ = original.array("val", "dog__1", 3, "pos_map")
    assert found == path
    np.testing.assert_array_equal(array, np.ones((2, 2)))
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(NotTaken, match=r"its pos_map.npy is damaged"):
        original.array("val", "dog__1", 3, "pos_map")
