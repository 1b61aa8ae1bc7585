"""What an annotation tool asks, against the parts that answer it."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import sam_laplace_assets
from sam_laplace_assets.domain.acquisition import suggest
from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.domain.scores import maps_of
from sam_laplace_assets.resources import annotator as module
from sam_laplace_assets.resources.annotator import KEPT_EMBEDDINGS, annotator_in_force, clicks, load_annotator
from sam_laplace_assets.storage.champion import require_champion
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets_tests.small_project import count_calls, draw, failure

CLICKS = [(20, 15, 1), (2, 3, 0)]


@pytest.fixture(scope="module")
def annotator(made_project):
    return load_annotator(settings=made_project.settings)


@pytest.fixture
def fresh(read_only):
    """An annotator that has seen no image."""
    return load_annotator()


def picture(size=(40, 60), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def count_encoder(monkeypatch):
    return count_calls(monkeypatch, FrozenSam, "embed")


def test_suggestions_are_those_of_suggest_on_the_maps_of_the_answer(annotator):
    image, _ = draw(3)
    found = annotator.suggest_prompts(image, CLICKS, 5)
    prompt_set = clicks(CLICKS, image.shape[:2])
    answerer = annotator._answerer
    (answer,) = answerer.answer(answerer.embed(image), [prompt_set])
    earlier = to_low_res(np.array([(20, 15), (2, 3)]), image_h=40, image_w=60)
    plain = suggest("bald_local", maps_of(answer), 5, spacing=16, earlier=earlier, earlier_radius=1)
    assert [(one.x_256, one.y_256, one.score, one.positive) for one in found] == [
        (one.x, one.y, one.score, one.positive) for one in plain
    ]


def test_two_clicks_on_an_image_ask_the_encoder_once(fresh, monkeypatch):
    calls = count_encoder(monkeypatch)
    image = picture()
    fresh.suggest_prompts(image, CLICKS[:1])
    fresh.suggest_prompts(image.copy(), CLICKS)
    fresh.predict(image, CLICKS)
    assert calls["embed"] == 1
    image[0, 0] ^= 1
    fresh.suggest_prompts(image, CLICKS)
    assert calls["embed"] == 2


@pytest.mark.parametrize("label", [-1, 2, 0.5, "-1"])
def test_a_label_that_is_neither_of_the_two_is_refused(label):
    with pytest.raises(ValueError, match="is neither 1, on the object, nor 0, beside it"):
        clicks([(1, 1, label)], (40, 60))


@pytest.mark.parametrize("change", ["sigma", "checkpoint"])
def test_a_champion_is_not_asked_through_what_its_head_has_not_learned_from(project, change):
    if change == "sigma":
        project.change(prompt_generation={"gaussian_sigma": 6})
    else:
        weights = torch.load(project.folder / "sam.pt", weights_only=True)
        weights["mask_decoder.iou_token.weight"] += 0.5
        torch.save(weights, project.folder / "sam.pt")
    name = "gaussian_sigma 8.0; the settings have gaussian_sigma 6" if change == "sigma" else "checkpoint_sha256"
    with pytest.raises(ValueError, match=name):
        load_annotator()
    told = failure(project.materialise("active_prompting", split="test", clicks=2))
    assert "train on these settings first" in told


def test_only_the_last_images_are_kept(fresh, monkeypatch):
    calls = count_encoder(monkeypatch)
    for seed in range(KEPT_EMBEDDINGS + 1):
        fresh.suggest_prompts(picture(seed=seed), CLICKS, 1)
        fresh.suggest_prompts(picture(seed=1), CLICKS, 1)  # the one used last stays
    assert calls["embed"] == KEPT_EMBEDDINGS + 1
    fresh.suggest_prompts(picture(seed=0), CLICKS, 1)
    assert calls["embed"] == KEPT_EMBEDDINGS + 2
    assert len(fresh._embeddings) == KEPT_EMBEDDINGS


@pytest.mark.parametrize("size", [(2, 600), (37, 23), (300, 400)])
def test_suggestions_lie_on_the_image_and_predictions_have_its_size(annotator, size):
    last = (size[1] - 1, size[0] - 1)
    for points in ([(*last, 1)], [(0, 0, 1), (*last, 0)], [(last[0], 0, 1), (0, last[1], 0)]):
        found = annotator.suggest_prompts(picture(size), points)
        assert len(found) == 10
        assert len({(one.x, one.y) for one in found} | {point[:2] for point in points}) == 10 + len(points)
        assert all(0 <= one.x <= last[0] and 0 <= one.y <= last[1] for one in found)
        prediction = annotator.predict(picture(size), points)
        for name in ("mask", "probability", "entropy", "mutual_information"):
            assert getattr(prediction, name).shape == size


def test_a_prediction_at_256_is_the_posteriors_own_of_sams_logits_and_maps(annotator):
    image = picture((256, 256))
    answerer = annotator._answerer
    (answer,) = answerer.answer(answerer.embed(image), [clicks(CLICKS, (256, 256))])
    found = annotator.predict(image, CLICKS)
    np.testing.assert_allclose(found.mutual_information, answer.quantities.mutual_information.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(found.mask, answer.quantities.probability.numpy() >= 0.5)


def test_a_path_is_read_upright(annotator, tmp_path):
    image = picture((20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    assert annotator.predict(tmp_path / "turned.png", [(1, 29, 1)]).mask.shape == (30, 20)


def test_a_click_falls_on_the_pixel_that_it_is_nearest_to():
    found = clicks([(1.4, 2.6, True), (-0.5, 39.49, np.int64(0)), (0, 0, 0.0)], (40, 60))
    assert found.pos == ((1, 3),)
    assert found.neg == ((0, 39), (0, 0))


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "There is no click yet"),
        ([(60, 0, 1)], r"\(60, 0\) lies outside the image of 60 x 40 pixels \(W x H\): x goes from 0 to 59, y to 39"),
        ([(0, -0.6, 1)], "lies outside"),
        ([(0, 39.5, 1)], "lies outside"),
        ([(1, 2)], r"\(1, 2\) is no click: give \(x, y, label\)"),
        ([("a", 2, 1)], "is no click"),
        ([(float("nan"), 2, 1)], "are not finite"),
    ],
)
def test_clicks_that_cannot_be_are_refused_with_what_is_wrong(annotator, points, said):
    with pytest.raises(ValueError, match=said):
        annotator.suggest_prompts(picture(), points)
    with pytest.raises(ValueError, match=said):
        annotator.predict(picture(), points)


def test_images_strategies_and_numbers_that_cannot_be_are_refused(annotator):
    for image in (picture().astype(float), picture()[..., 0], picture((0, 5))):
        with pytest.raises(ValueError, match=r"give \(H, W, 3\) uint8 RGB, or a path"):
            annotator.suggest_prompts(image, CLICKS)
    with pytest.raises(ValueError, match="no strategy 'oracle'"):
        annotator.suggest_prompts(picture(), CLICKS, strategy="oracle")
    with pytest.raises(ValueError, match="Cannot suggest 0 points"):
        annotator.suggest_prompts(picture(), CLICKS, 0)


def test_the_settings_say_how_many_and_by_what(project):
    project.change(prompting={"suggestions": 3, "strategy": "variance", "spacing": 60})
    annotator = load_annotator()
    found = annotator.suggest_prompts(picture(), CLICKS)
    assert len(found) == 3
    assert found == annotator.suggest_prompts(picture(), CLICKS, 3, strategy="variance")
    assert found != annotator.suggest_prompts(picture(), CLICKS, 3, strategy="entropy")


def test_the_function_of_the_package_asks_the_champion_in_force(read_only, annotator):
    assert sam_laplace_assets.suggest_prompts(picture(), CLICKS, 4) == annotator.suggest_prompts(picture(), CLICKS, 4)
    assert annotator_in_force() is annotator_in_force()
    assert annotator_in_force().identity.run_id == require_champion(read_only.paths.posteriors).run_id
    assert sam_laplace_assets.load_annotator().identity == annotator.identity


def test_other_settings_or_another_champion_are_loaded_anew(project):
    first = annotator_in_force()
    project.change(prompting={"suggestions": 2})
    second = annotator_in_force()
    assert second is not first
    assert len(sam_laplace_assets.suggest_prompts(picture(), CLICKS)) == 2
    path = project.paths.posteriors / "champion.json"
    path.write_text(path.read_text() + "\n")
    assert annotator_in_force() is not second
    assert len(module._in_force) == 1


def test_a_posterior_is_named_by_its_run_id_or_folder(read_only):
    run_id = require_champion(read_only.paths.posteriors).run_id
    folder = read_only.paths.posteriors / f"run_{run_id}"
    assert load_annotator(run_id).identity == load_annotator(folder).identity == load_annotator(str(folder)).identity
    for unknown in ("train-0000", "../../x", folder.parent / "run_nowhere"):
        with pytest.raises(NotMade, match=f"There is no posterior .*Those that are there: {run_id}"):
            load_annotator(unknown)


def test_a_project_without_a_champion_says_so(new_project):
    with pytest.raises(NotMade, match="There is no champion yet"):
        load_annotator()


def test_calls_from_threads_give_what_calls_in_turn_give(annotator):
    images = [picture(seed=seed) for seed in range(4)]
    alone = [annotator.suggest_prompts(image, CLICKS) for image in images]
    found = [None] * 4

    def ask(at):
        torch.set_num_threads(1)
        for _ in range(3):
            found[at] = annotator.suggest_prompts(images[at], CLICKS)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_a_tool_needs_neither_dagster_nor_mlflow(read_only):
    code = ("import sys, numpy as np, sam_laplace_assets as s; "
            "s.suggest_prompts(np.zeros((20, 30, 3), np.uint8), [(5, 5, 1)]); "
            "print([m for m in ('dagster', 'mlflow') if m in sys.modules])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
