"""Truths that hold of any names, trees of files, masks and sizes."""

import unicodedata
from collections import Counter
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sam_laplace_assets.assets.manifest import _key
from sam_laplace_assets.domain.geometry import LOW_RES, resampling_matrices, to_low_res
from sam_laplace_assets.domain.manifest import (
    FRACTIONS,
    LONGEST_FILE_NAME,
    PARTITION_ROLES,
    Candidate,
    assign_splits,
    safe_id,
    why_no_file_name,
)
from sam_laplace_assets.domain.prompts import draw_prompt_sets
from sam_laplace_assets.storage.samples import Found, list_samples

unhurried = settings(deadline=None)  # a busy machine is no failure
PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=100)
PATHS = st.lists(st.text("a|\\N", min_size=1, max_size=4) | st.just("None"), min_size=1, max_size=3).map("/".join)


# Names


@unhurried
@given(st.lists(PARTS, min_size=2, max_size=4))
@example(["..", ".."])
@example(["a", "é" * 120])
def test_a_safe_id_is_one_name_that_files_can_have_or_is_refused(parts):
    name = safe_id("/".join(parts))
    assert "/" not in name
    assert name not in ("", ".", "..")
    reason = why_no_file_name("/".join(parts))
    assert (reason is None) == (len(name.encode()) <= LONGEST_FILE_NAME)
    assert reason is None or f"{len(name.encode())} bytes" in reason


@unhurried
@given(st.lists(PARTS.filter(lambda part: "__" not in f"_{part}_"), min_size=2, max_size=4))
def test_a_safe_id_gives_its_sample_id_back_unless_a_part_holds_the_sign_for_a_slash(parts):
    assert safe_id("/".join(parts)).split("__") == parts


@settings(deadline=None, max_examples=300)
@given(*[st.none() | PATHS] * 4)
@example("None", None, None, "None")
@example("None|a", None, None, "a|None")
@example("a", "b|c", "a|b", "c")
@example("a\\", "b", "a", "\\|b")
def test_no_two_pairs_of_files_are_one_item(image, mask, other_image, other_mask):
    assume((image, mask) != (other_image, other_mask))
    pair, other = (_key(Found("x", "", *paths, "any")) for paths in ((image, mask), (other_image, other_mask)))
    assert pair != other


# Trees of files

STEMS = st.sampled_from(["x", "X", "y", "e\u0301", "\u00e9", "x.png", "a__x", ".hid", "n\nl", "b\\s", "x.npy", "a"])
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", ".npy", "", ".txt"])
FOLDERS = st.sampled_from(["", "a", "A", "a/b", "a__b", ".hid", "a/x.png", "c"])
TREES = st.lists(st.tuples(st.booleans(), FOLDERS, STEMS, SUFFIXES), max_size=14)


def plant(folder, tree):
    """Make the files of a tree, as far as they do not stand in each other's way; those that are not hidden."""
    planted = set()
    for is_image, *parts in tree:
        name = f"{parts[0]}/{parts[1]}{parts[2]}".lstrip("/")
        path = folder / ("images" if is_image else "masks") / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            continue
        if path.is_file() and not any(part.startswith(".") for part in Path(name).parts):
            planted.add((is_image, name))
    return planted


@settings(deadline=None, max_examples=150)
@given(TREES)
@example([(True, "a", "x", ".png"), (True, "a", "x", ""), (False, "a", "x", ".npy")])
@example([(True, "a/b", "x", ".png"), (False, "a/b", "x", ".png"), (True, "a__b", "x", ".jpg"),
          (False, "a__b", "x", ".npy")])  # fmt: skip
def test_every_file_of_a_tree_is_named_once_and_samples_share_nothing(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree")
    for root in ("images", "masks"):
        (folder / root).mkdir()
    planted = plant(folder, tree)
    found = list_samples(folder / "images", folder / "masks")
    named = Counter((True, one.image_path) for one in found if one.image_path)
    named += Counter((False, one.mask_path) for one in found if one.mask_path)
    assert set(named.values()) <= {1}
    doubles = "; ".join(one.reason for one in found if one.reason and "of one stem" in one.reason)
    for is_image, name in planted:
        words = name.replace("\\", "\\\\").replace("\n", "\\n") if set(name) & {"\\", "\n"} else name
        assert (is_image, words) in named or words in doubles
    assert len(named) <= len(planted)
    assert found == sorted(found, key=lambda one: (one.sample_id, one.image_path or "", one.mask_path or ""))
    taken = [one for one in found if one.reason is None]
    assert len({unicodedata.normalize("NFC", safe_id(one.sample_id)).lower() for one in taken}) == len(taken)
    for one in taken:
        stems = {str(Path(path).with_suffix("")) for path in (one.image_path, one.mask_path)}
        assert {unicodedata.normalize("NFC", stem) for stem in stems} == {one.sample_id}


# Splits


@unhurried
@given(st.lists(st.integers(1, 25), min_size=1, max_size=12), st.integers(0, 2**31))
def test_a_class_that_grows_batch_by_batch_stays_near_its_fractions(batches, split_seed):
    splits, samples = {}, []
    for size in batches:
        samples += [Candidate(f"cat/{len(samples) + at:04d}", "cat") for at in range(size)]
        before, splits = splits, assign_splits(samples, splits, split_seed=split_seed)
        assert before.items() <= splits.items()
        assert splits.keys() == {one.sample_id for one in samples}
        counts = Counter(splits.values())
        for role, fraction in zip(PARTITION_ROLES, FRACTIONS, strict=True):
            assert abs(counts[role] - len(samples) * fraction) < 2


# Prompts


@unhurried
@given(
    npst.arrays(np.bool_, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
def test_points_are_drawn_wherever_there_are_as_many_pixels_as_may_be_asked_for(mask, max_pairs, prompt_seed):
    asked = {"sample_id": "a/x", "count": 2, "min_pairs": 1, "max_pairs": max_pairs, "prompt_seed": prompt_seed}
    if min(mask.sum(), (~mask).sum()) < max_pairs:
        with pytest.raises(ValueError, match=r"Cannot draw .* of a/x: its mask has \d+ such pixels"):
            draw_prompt_sets(mask, **asked)
        return
    sets = draw_prompt_sets(mask, **asked)
    assert sets == draw_prompt_sets(mask.copy(order="F"), **asked)
    points = [point for one in sets for point in (*one.pos, *one.neg)]
    assert all(0 <= x < mask.shape[1] and 0 <= y < mask.shape[0] for x, y in points)


# Frames


@unhurried
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([256, 1024]))
def test_points_go_to_sams_frame_inside_the_image_and_back(height, width, image_size):
    """SAM's own transform, against its inverse; what is nothing there is refused elsewhere."""
    from segment_anything.utils.transforms import ResizeLongestSide

    transform = ResizeLongestSide(image_size)
    new_h, new_w = transform.get_preprocess_shape(height, width, image_size)
    assume(min(new_h, new_w) >= 1)
    assert max(new_h, new_w) == image_size
    corners = np.array([[0, 0], [width - 1, height - 1], [width // 2, height // 3]])
    scaled = transform.apply_coords(corners, (height, width))
    assert (scaled >= 0).all()
    assert (scaled < [new_w, new_h]).all()
    np.testing.assert_allclose(scaled * [width / new_w, height / new_h], corners, atol=1e-6 * max(height, width))
    low_res = to_low_res(corners, image_h=height, image_w=width)
    assert ((low_res > -0.5) & (low_res < LOW_RES - 0.5)).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 256), st.integers(1, 700))
def test_resampling_takes_averages_of_what_is_not_padding(inside, original):
    """No weight is negative, and none falls on logits that lie a pixel or more beyond the image."""
    rows, _ = resampling_matrices(
        low_res=64, image_size=256, input_size=(inside, 256), original_size=(original, 256)
    )  # fmt: skip
    weights = rows.numpy()
    assert (weights >= 0).all()
    assert not weights[:, ceil(inside / 4) + 1 :].any()
    centres = weights @ np.arange(64)
    assert (np.diff(centres) >= -1e-4).all()
