"""Drawn scenes are functions of their seed, and their labels are what is visible."""

import numpy as np
import pytest

from sam_laplace_assets.demo import scenes
from sam_laplace_assets.demo.data import SCENE_CLASSES, SCENES_A_CLASS, draw_demo_scene
from sam_laplace_assets.demo.scenes import KINDS, Purpose, draw_scene, scene_rng
from sam_laplace_assets.demo.textures import TEXTURES, draw_field


def test_the_same_seed_draws_the_same_scene() -> None:
    first, second = (draw_scene(scene_rng(Purpose.TRAINING, 3, 5)) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.labels, second.labels)
    assert first.kinds == second.kinds


def test_scenes_of_different_purposes_never_share_a_stream() -> None:
    streams = {tuple(scene_rng(purpose, 0, 7).integers(2**63, size=2)) for purpose in Purpose}
    assert len(streams) == len(Purpose)


def test_no_demo_scene_is_a_training_scene() -> None:
    trained = {draw_scene(scene_rng(Purpose.TRAINING, 0, index)).image.tobytes() for index in range(30)}
    shown = {draw_scene(scene_rng(Purpose.DEMO, 0, index)).image.tobytes() for index in range(30)}
    assert not trained & shown


def test_every_demo_scene_has_its_own_index() -> None:
    indices = [1000 * number + index for number in range(len(SCENE_CLASSES)) for index in range(SCENES_A_CLASS)]
    assert len(set(indices)) == len(indices)
    assert not np.array_equal(draw_demo_scene("discs", 0).mask.shape, draw_demo_scene("discs", 1).mask.shape)


def test_labels_are_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each shape in a colour of its own and no camera, the colour of a pixel is its label."""
    painted: list[int] = []

    def paint(rng: np.random.Generator, canvas: scenes.Floats, mask: scenes.Mask, style: scenes.Style) -> None:
        painted.append(len(painted) + 1)
        canvas[mask] = painted[-1]

    def develop(rng: np.random.Generator, canvas: scenes.Floats, *, grey: bool) -> scenes.Floats:
        return np.where(canvas >= 1, canvas, 0)

    monkeypatch.setattr(scenes, "draw_texture", lambda rng, shape, colour, contrast: np.zeros((*shape, 3), np.float32))
    monkeypatch.setattr(scenes, "paint", paint)
    monkeypatch.setattr(scenes, "develop", develop)
    for index in range(10):
        painted.clear()
        scene = draw_scene(scene_rng(Purpose.HELD_OUT, 1, index), shapes=(8, 10))
        assert np.array_equal(scene.image[..., 0], scene.labels)
        assert scene.labels.max() <= len(scene.kinds) == len(painted)


def test_visible_counts_pixels_against_the_image() -> None:
    labels = np.zeros((10, 10), np.uint8)
    labels[:2, :5], labels[5, 5] = 1, 3
    scene = scenes.Scene(np.zeros((10, 10, 3), np.uint8), labels, ("disc", "disc", "blob"))
    assert scene.visible(min_fraction=0.01) == [1, 3]
    assert scene.visible(min_fraction=0.05) == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_kinds_asked_for_are_drawn(kind: str) -> None:
    scene = draw_scene(scene_rng(Purpose.HELD_OUT, 0, 0), size=(120, 200), kinds=(kind,))
    assert scene.image.shape == (120, 200, 3)
    assert set(scene.kinds) == {kind}


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"kind 'cube'\. Known kinds: disc, polygon, star, blob, ring\."):
        draw_scene(np.random.default_rng(0), kinds=("cube",))


@pytest.mark.parametrize("name", TEXTURES)
def test_a_texture_field_lies_in_the_unit_interval(name: str) -> None:
    field = draw_field(np.random.default_rng(1), (37, 53), name)
    assert field.shape == (37, 53)
    assert 0 <= field.min() <= field.max() <= 1
