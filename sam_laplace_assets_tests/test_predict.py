"""`sam-laplace predict`, as it is called."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sam_laplace_assets.cli import cli
from sam_laplace_assets.domain.acquisition import without_truth
from sam_laplace_assets.resources.annotator import load_annotator
from sam_laplace_assets.resources.sam import sha256_of_checkpoint
from sam_laplace_assets.storage.champion import require_champion
from sam_laplace_assets_tests.small_project import draw

POINTS = "20,15,1 2,3,0"
CLICKS = [(20, 15, 1), (2, 3, 0)]


def call(*arguments):
    result = CliRunner().invoke(cli, ["predict", *map(str, arguments)])
    return result.exit_code, result.output


def picture(folder, name, seed=1, size=(40, 60)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(seed, size=size)[0]).save(path)
    return path


def summary(out):
    return json.loads((out / "predictions.json").read_text())


@pytest.fixture
def here(tmp_path, monkeypatch, read_only, plain_pictures):
    """An empty working directory; the made project's settings are in force."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_image_gets_its_mask_its_maps_and_a_picture(here):
    path = picture(here, "a.png")
    code, output = call("a.png", "--points", POINTS)
    assert code == 0, output
    out = here / "predictions"
    assert {one.name for one in out.iterdir()} == {
        "a_mask.png", "a_probability.npy", "a_mutual_information.npy", "a_picture.png", "predictions.json",
    }  # fmt: skip
    annotator = load_annotator()
    plain = annotator.predict(path, CLICKS)
    np.testing.assert_array_equal(np.load(out / "a_probability.npy"), plain.probability)
    np.testing.assert_array_equal(np.load(out / "a_mutual_information.npy"), plain.mutual_information)
    with Image.open(out / "a_mask.png") as mask:
        np.testing.assert_array_equal(np.array(mask), plain.mask * np.uint8(255))
    (told,) = summary(out)["images"]
    assert told["points"] == {"pos": [[20, 15]], "neg": [[2, 3]]}
    assert [(one["x"], one["y"]) for one in told["next_points"]] == [
        (one.x, one.y) for one in annotator.suggest_prompts(path, CLICKS)
    ]


def test_the_summary_says_what_was_used(here, read_only):
    picture(here, "a.png")
    assert call("a.png", "--points", POINTS)[0] == 0
    told, run_id = summary(here / "predictions"), require_champion(read_only.paths.posteriors).run_id
    assert told["posterior"]["run_id"] == run_id
    meta = json.loads((read_only.paths.posteriors / f"run_{run_id}" / "posterior_meta.json").read_text())
    assert told["posterior"]["state_sha256"] == meta["sha256"]["laplace_state.pt"]
    assert told["sam"]["sha256"] == sha256_of_checkpoint(read_only.settings.sam.checkpoint, here / "memory.json")
    assert told["rule"]["strategy"] == "bald_local"


def test_many_images_take_their_points_from_a_csv_or_a_json(here):
    first, second = picture(here / "x", "a.png"), picture(here / "y", "a.jpg", seed=2, size=(37, 23))
    (here / "points.csv").write_text("image,x,y,label\nx/a.png,20,15,1\ny/a.jpg,5,6,1\nx/a.png,2,3,0\n")
    (here / "points.json").write_text(json.dumps({"x/a.png": [[20, 15, 1], [2, 3, 0]], "y/a.jpg": [[5, 6, 1]]}))
    for name, images in (("points.csv", ()), ("points.json", ()), ("points.csv", (first, second)),
                         ("points.csv", ("x/a.png", "y/a.jpg"))):  # fmt: skip
        code, output = call(*images, "--points-file", name, "--out", f"out/{name}{len(images)}")
        assert code == 0, output
        told = summary(here / "out" / f"{name}{len(images)}")["images"]
        assert [one["points"] for one in told] == [{"pos": [[20, 15]], "neg": [[2, 3]]}, {"pos": [[5, 6]], "neg": []}]
        assert [sorted(one["sha256"])[0] for one in told] == ["a_mask.png", "a-2_mask.png"]


def test_one_bad_image_does_not_stop_the_others_and_the_command_fails_at_the_end(here):
    picture(here, "good.png")
    (here / "broken.png").write_bytes(b"no image")
    picture(here, "small.png", size=(10, 12))
    code, output = call("broken.png", "small.png", "gone.png", "good.png", "--points", POINTS)
    assert code == 1
    assert "Error: 3 could not be predicted:" in output
    assert "broken.png is not a whole JPEG or PNG file" in output
    assert "Point (x, y) = (20, 15) lies outside the image of 12 x 10 pixels" in output
    assert "gone.png is not there" in output
    told = summary(here / "predictions")
    assert [one["image"] for one in told["images"]] == ["good.png"]
    assert [one["image"] for one in told["failed"]] == ["broken.png", "small.png", "gone.png"]
    assert (here / "predictions" / "good_mask.png").exists()


def test_an_image_that_the_points_file_does_not_name_has_no_click(here):
    picture(here, "a.png")
    picture(here, "b.png")
    (here / "points.csv").write_text("image,x,y,label\na.png,20,15,1\n")
    code, output = call("a.png", "b.png", "--points-file", "points.csv")
    assert code == 1
    assert "b.png: There is no click yet" in output
    assert [one["image"] for one in summary(here / "predictions")["images"]] == ["a.png"]


def test_maps_as_png_and_another_posterior(here, read_only):
    picture(here, "a.png")
    champion = read_only.paths.posteriors / f"run_{require_champion(read_only.paths.posteriors).run_id}"
    code, output = call("a.png", "--points", POINTS, "--format", "png", "--posterior", champion, "--out", here / "o")
    assert code == 0, output
    with Image.open(here / "o" / "a_probability.png") as stored:
        values = np.array(stored) / 65_535
    np.testing.assert_allclose(values, load_annotator().predict("a.png", CLICKS).probability, atol=1e-5)


def test_an_image_without_points_in_a_file_fails_by_its_name(here):
    picture(here, "a.png")
    picture(here, "b.png")
    (here / "points.json").write_text(json.dumps({"a.png": [], "b.png": [[20, 15, 1]]}))
    code, output = call("--points-file", "points.json")
    assert code == 1
    assert "a.png: There is no click yet" in output
    assert (here / "predictions" / "b_mask.png").is_file()


def test_files_that_are_there_are_replaced(here):
    picture(here, "a.png")
    assert call("a.png", "--points", POINTS)[0] == 0
    before = np.load(here / "predictions" / "a_probability.npy")
    assert call("a.png", "--points", "50,5,1")[0] == 0
    assert not np.array_equal(before, np.load(here / "predictions" / "a_probability.npy"))
    assert not list((here / "predictions").glob(".tmp*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a.png",), "Give the points either as --points or as --points-file."),
        (("a.png", "--points", "1,2,1", "--points-file", "p.csv"), "Give the points either as"),
        (("--points", "1,2,1"), "Name the images that these points are on."),
        (("a.png", "--points", "1,2"), "'1,2' (1,2) is no point: give x,y,label"),
        (("a.png", "--points", "1,2,3"), "Label 3 (1,2,3) is neither 1, on the object, nor 0, beside it."),
        (("a.png", "--points-file", "gone.csv"), "gone.csv cannot be read as points"),
        (("a.png", "--points-file", "columns.csv"), "columns.csv has no column label: it needs image, x, y and label."),
        (("a.png", "--points-file", "row.csv"), "(line 2 of row.csv) is no point"),
        (("a.png", "--points-file", "list.json"), "list.json is no object of image -> [[x, y, label], ...]."),
        (("a.png", "--points-file", "empty.json"), "empty.json holds no points."),
        (("a.png", "--points", POINTS, "--posterior", "train-0000"), "There is no posterior train-0000"),
    ],
)
def test_what_cannot_be_is_told_without_a_traceback(here, arguments, said):
    picture(here, "a.png")
    (here / "columns.csv").write_text("image,x,y\na.png,1,2\n")
    (here / "row.csv").write_text("image,x,y,label\na.png,1,two,1\n")
    (here / "list.json").write_text("[1, 2]")
    (here / "empty.json").write_text("{}")
    code, output = call(*arguments)
    assert code == 1
    assert output.startswith("Error: ")
    assert said in output
    assert "Traceback" not in output
    assert not (here / "predictions").exists()


def test_a_project_without_a_champion_says_so(new_project, tmp_path):
    code, output = call(picture(tmp_path, "a.png"), "--points", POINTS)
    assert code == 1
    assert "There is no champion yet" in output


def test_its_help_lists_the_strategies_that_exist():
    code, output = call("--help")
    *others, last = without_truth()
    assert code == 0
    assert f"(prompting.strategy: {', '.join(others)} or {last})" in " ".join(output.split())


def test_the_installed_command_predicts(read_only, tmp_path):
    path = picture(tmp_path, "a.png")
    command = [sys.executable, "-m", "sam_laplace_assets.cli", "predict", str(path), "--points", POINTS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "% foreground; predictions/a_*" in done.stdout
    with Image.open(tmp_path / "predictions" / "a_picture.png") as drawn:
        assert drawn.width > 500
    failed = subprocess.run([*command, str(tmp_path / "b.png")], cwd=tmp_path, env=environment, capture_output=True,
                            text=True, check=False)  # fmt: skip
    assert failed.returncode == 1
    assert "b.png is not there" in failed.stderr
    assert "Traceback" not in failed.stderr
