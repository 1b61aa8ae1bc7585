from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sam_laplace_assets.domain.geometry import LOW_RES, resampling_matrices, resize_nearest, to_low_res, to_original

unhurried = settings(deadline=None)  # a busy machine is no failure


def bilinear(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False, antialias=False)


def plain_route(logits, *, image_size, input_size, original_size):
    """SAM's postprocess_masks, then the resize to 256x256, at full size."""
    padded = bilinear(logits[None, None], (image_size, image_size))
    original = bilinear(padded[..., : input_size[0], : input_size[1]], original_size)
    return bilinear(original, (LOW_RES, LOW_RES))[0, 0]


def input_size_of(original_size, image_size):
    scale = image_size / max(original_size)
    return tuple(int(side * scale + 0.5) for side in original_size)


@pytest.mark.parametrize("size", [(1, 900), (37, 211), (211, 37), (600, 1000), (2003, 1501), (2400, 90), (1024, 1024)])
def test_the_matrices_are_the_plain_route(size):
    logits = 10 * torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    frames = {"image_size": 1024, "input_size": input_size_of(size, 1024), "original_size": size}
    rows, columns = resampling_matrices(low_res=256, **frames)
    torch.testing.assert_close(rows @ logits @ columns.T, plain_route(logits, **frames), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 300), (2, 2), (101, 77), (256, 256), (700, 2100)])
def test_the_matrices_are_the_plain_route_of_the_toy(size):
    logits = 10 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    frames = {"image_size": 256, "input_size": input_size_of(size, 256), "original_size": size}
    rows, columns = resampling_matrices(low_res=64, **frames)
    torch.testing.assert_close(rows @ logits @ columns.T, plain_route(logits, **frames), atol=1e-5, rtol=0)


@unhurried
@given(st.integers(1, 1024), st.integers(1, 2000))
def test_constant_logits_stay_constant(inside, original):
    rows, _ = resampling_matrices(
        low_res=256, image_size=1024, input_size=(inside, 1024), original_size=(original, 1024)
    )
    assert rows.dtype == torch.float32
    assert rows.shape == (LOW_RES, 256)
    torch.testing.assert_close(rows.sum(1), torch.ones(LOW_RES))


@pytest.mark.parametrize("input_size", [(0, 1024), (1025, 1024)])
def test_an_input_outside_the_model_is_refused(input_size):
    with pytest.raises(ValueError, match=r"Cannot resample an input of \d+ x 1024 pixels \(of 1024\)"):
        resampling_matrices(low_res=256, image_size=1024, input_size=input_size, original_size=(10, 10))


def test_points_of_a_256_image_stay_where_they_are():
    points = np.array([[0, 0], [255, 255], [17, 200]])
    np.testing.assert_array_equal(to_low_res(points, image_h=256, image_w=256), points)


@unhurried
@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_a_point_keeps_its_relative_place(height, width, data):
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    (moved,) = to_low_res(np.array([[x, y]]), image_h=height, image_w=width)
    assert moved.dtype == np.float64
    np.testing.assert_allclose((moved + 0.5) / LOW_RES, [(x + 0.5) / width, (y + 0.5) / height], rtol=1e-12)


def test_points_land_where_resized_pixels_do():
    """A column of ones at x, resized, has its centre of mass at the rescaled point."""
    column = torch.zeros(1, 1, 64, 64)
    column[..., 20] = 1
    mass = bilinear(column, (LOW_RES, LOW_RES))[0, 0, 0]
    centre = (mass * torch.arange(LOW_RES)).sum() / mass.sum()
    ((x, _),) = to_low_res(np.array([[20, 0]]), image_h=64, image_w=64)
    assert float(centre) == pytest.approx(x, abs=1e-4)


def test_an_image_without_size_is_refused():
    with pytest.raises(ValueError, match="Cannot rescale points of an image of 0 x 5 pixels"):
        to_low_res(np.zeros((1, 2)), image_h=0, image_w=5)


@unhurried
@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_a_pixel_of_the_original_comes_back_to_itself(height, width, data):
    pixels = data.draw(st.lists(st.tuples(st.integers(0, width - 1), st.integers(0, height - 1)), max_size=5))
    low_res = to_low_res(np.array(pixels), image_h=height, image_w=width)
    back = to_original(low_res, image_h=height, image_w=width)
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, np.array(pixels).reshape(-1, 2))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 3), (2, 600), (600, 2), (255, 257), (256, 256), (1000, 37)])
def test_every_low_res_pixel_has_the_label_of_its_original(height, width):
    mask = np.random.default_rng(0).random((height, width)) < 0.5
    y, x = np.mgrid[:LOW_RES, :LOW_RES]
    back = to_original(np.stack([x.ravel(), y.ravel()], 1), image_h=height, image_w=width)
    low_res = resize_nearest(mask, LOW_RES, LOW_RES)
    np.testing.assert_array_equal(mask[back[:, 1], back[:, 0]], low_res.ravel())


@unhurried
@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(-0.5, 255.5), st.floats(-0.5, 255.5))
def test_every_point_of_the_frame_lands_inside_the_image(height, width, x, y):
    ((column, row),) = to_original(np.array([[x, y]]), image_h=height, image_w=width)
    assert 0 <= column < width
    assert 0 <= row < height


def test_the_corners_of_the_frame_are_the_corner_pixels():
    corners = to_original(np.array([[-0.5, -0.5], [255.5, 255.5]]), image_h=3, image_w=600)
    np.testing.assert_array_equal(corners, [[0, 0], [599, 2]])


@pytest.mark.parametrize("point", [(-0.6, 3), (3, 256), (np.nan, 3)])
def test_a_point_outside_the_frame_is_refused(point):
    with pytest.raises(ValueError, match=r"Point \(x, y\) = \(.*\) lies outside the 256x256 frame\.$"):
        to_original(np.array([(1, 1), point]), image_h=10, image_w=10)


def test_points_of_an_image_without_size_are_refused():
    with pytest.raises(ValueError, match="Cannot rescale points to an image of 5 x 0 pixels"):
        to_original(np.zeros((1, 2)), image_h=5, image_w=0)


@unhurried
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_a_resized_mask_takes_the_pixel_under_each_centre(h, w, height, width):
    mask = np.arange(h * w).reshape(h, w)
    rows = [int(Fraction(2 * i + 1, 2) * h / height) for i in range(height)]
    columns = [int(Fraction(2 * j + 1, 2) * w / width) for j in range(width)]
    expected = [[mask[i, j] for j in columns] for i in rows]
    np.testing.assert_array_equal(resize_nearest(mask, height, width), expected)


@unhurried
@given(st.integers(1, 20), st.integers(1, 5))
def test_enlarging_by_a_whole_factor_and_back_is_the_identity(side, factor):
    mask = np.random.default_rng(side).random((side, side)) > 0.5
    enlarged = resize_nearest(mask, side * factor, side * factor)
    assert enlarged.dtype == np.bool_
    np.testing.assert_array_equal(resize_nearest(enlarged, side, side), mask)


@pytest.mark.parametrize(("shape", "size"), [((3,), (2, 2)), ((0, 3), (2, 2)), ((3, 3), (0, 2))])
def test_a_mask_without_sides_is_refused(shape, size):
    with pytest.raises(ValueError, match=r"Cannot resize a mask of shape \(.*\) to \d x 2: both need two sides"):
        resize_nearest(np.zeros(shape, dtype=bool), *size)
