import json
import shutil
from dataclasses import dataclass, field

import pytest
import torch

from sam_laplace_assets.domain.plan import Course, Item, Report
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.head import STATE, WEIGHTS, HeadRun, HeadStore
from sam_laplace_assets.storage.materialise import run_course
from sam_laplace_assets.storage.runs import current_run
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.weights import Damaged
from sam_laplace_assets_tests.storage.fakes import Died, cut, death, flip, holds, quiet

EPOCHS = 3
RUN = "run_train-abc"


def saved(epoch):
    """Every file of an epoch says which epoch it is of."""
    states = {name: {"w": torch.full((2,), float(epoch)), "file": name} for name in WEIGHTS}
    return {**states, "epoch": epoch, "history": [{"epoch": at} for at in range(1, epoch + 1)],
            "finished": "done" if epoch == EPOCHS else None}  # fmt: skip


def restored(state):
    """The epoch, which all files must agree on."""
    epochs = {float(state[name]["w"][0]) for name in WEIGHTS}
    assert epochs == {float(state["epoch"])}
    return int(state["epoch"])


@dataclass
class Training:
    """Counts what it is asked to do."""

    stop_after: int = 0
    began: list[int | None] = field(default_factory=list)
    made_from: str = "digest"

    def steps(self, state):
        self.began.append(state)
        for epoch in range((state or 0) + 1, EPOCHS + 1):
            yield epoch
            if epoch == self.stop_after:
                raise Died

    def course(self, finish=None):
        item = Item("train-abc", {"run": self.made_from}, {"lr": 0.1, "made_from": self.made_from})
        return Course(item, steps=self.steps, save=saved, restore=restored, step=int, follow=lambda state: Report(),
                      total=EPOCHS, finish=finish)  # fmt: skip


def store_of(folder):
    return HeadStore(folder, folder / "current-train.json")


def train(folder, training=None, **course):
    training = training or Training()
    return run_course(training.course(**course), store_of(folder), progress=quiet, step=lambda state: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    train(folder)
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "heads")


def test_a_finished_run_opens_with_its_best_weights(folder):
    run = HeadRun.open(folder / RUN)
    assert (run.run_id, run.config["lr"], len(run.history)) == ("train-abc", 0.1, EPOCHS)
    assert run.weights()["file"] == "best.pt"
    assert run.best_sha256 == files.file_sha256(folder / RUN / "best.pt")
    assert current_run(folder / "current-train.json", name="head_checkpoint[train]") == "train-abc"


def test_a_run_that_does_not_say_what_prompts_it_was_trained_on_has_none(folder):
    assert HeadRun.open(folder / RUN).prompts is None


def test_a_finished_run_is_left_alone(folder):
    before, training = holds(folder), Training()
    outcome = train(folder, training)
    assert training.began == []
    assert (outcome.made, outcome.reused) == (0, EPOCHS)
    assert holds(folder) == before


def test_training_goes_on_from_the_last_epoch(folder, tmp_path):
    stopped, training = tmp_path / "stopped", Training()
    with pytest.raises(Died):
        train(stopped, Training(stop_after=2))
    with pytest.raises(NotMade, match="not trained to its end. Materialise head_checkpoint".replace(".", r"\.")):
        HeadRun.open(stopped / RUN)
    outcome = train(stopped, training)
    assert training.began == [2]
    assert (outcome.made, outcome.reused) == (1, 2)
    assert holds(stopped) == holds(folder)


def test_a_death_between_any_two_steps_resumes_from_a_whole_epoch(folder, tmp_path):
    for step in range(100):
        dying = tmp_path / f"dying {step}"
        with death(step) as fate:
            train(dying)
        training = Training()
        train(dying, training)  # `restored` refuses a mixture
        assert holds(dying) == holds(folder)
        if not fate.happened:
            break
        shutil.rmtree(dying)
    assert step > EPOCHS * 4 * len(WEIGHTS)
    assert training.began == []


def test_two_deaths_in_a_row_resume_from_a_whole_epoch(folder, tmp_path):
    for first in (46, 48):  # while the files of the second epoch take their names
        for second in range(25):
            dying = tmp_path / "dying"
            for step in (first, second):
                with death(step):
                    train(dying)
            train(dying)
            assert holds(dying) == holds(folder), (first, second)
            shutil.rmtree(dying)


@pytest.mark.parametrize("name", [*WEIGHTS, "config.yaml"])
@pytest.mark.parametrize(("harm", "found"), [(lambda path: path.unlink(), "is missing"), (cut, "is not the one"),
                                             (flip, "is not the one")])  # fmt: skip
def test_a_missing_or_foreign_file_is_a_loud_error_that_names_it(folder, tmp_path, name, harm, found):
    half = tmp_path / "half"
    with pytest.raises(Died):
        train(half, Training(stop_after=2))
    for where in (folder, half):
        harm(where / RUN / name)
        before = holds(where)
        with pytest.raises(Damaged, match=rf"{name} {found}.*epoch_state\.json names SHA-256.*delete the folder {RUN}"):
            train(where)
        assert holds(where) == before
    with pytest.raises(Damaged, match=f"{name} {found}"):
        HeadRun.open(folder / RUN)


def test_a_run_whose_state_is_gone_or_no_json_is_named(folder):
    (folder / RUN / STATE).write_bytes(b"{")
    with pytest.raises(ValueError, match=r"epoch_state\.json is not JSON"):
        HeadRun.open(folder / RUN)
    (folder / RUN / STATE).unlink()
    with pytest.raises(Damaged, match=r"epoch_state\.json is missing"):
        HeadRun.open(folder / RUN)


def test_a_finished_run_is_never_overwritten(folder):
    before, item = holds(folder), Training().course().item
    with pytest.raises(Damaged, match=f"{RUN} holds a finished run already. Move it away".replace(".", r"\.")):
        store_of(folder).write(item, frozenset(item.parts), saved(1))
    with pytest.raises(Damaged, match=f"{RUN} was made from something else"):
        train(folder, Training(made_from="other"))
    assert holds(folder) == before


def test_a_half_done_run_of_something_else_is_not_gone_on_with(tmp_path):
    with pytest.raises(Died):
        train(tmp_path, Training(stop_after=1))
    before = holds(tmp_path)
    with pytest.raises(Damaged, match="was made from something else. Move it away".replace(".", r"\.")):
        train(tmp_path, Training(made_from="other"))
    assert holds(tmp_path) == before


def test_the_pointer_follows_the_run_and_its_overrides(folder):
    course = Training().course(finish={"lr": 0.5})
    records = store_of(folder).records(course.items)
    assert store_of(folder).finished(Training().course(), records)
    assert not store_of(folder).finished(course, records)
    train(folder, finish={"lr": 0.5})
    assert json.loads((folder / "current-train.json").read_text())["overrides"] == {"lr": 0.5}


def test_a_state_of_a_newer_version_is_refused(folder):
    state = json.loads((folder / RUN / STATE).read_text())
    files.write_json(folder / RUN / STATE, {**state, "version": 2})
    with pytest.raises(files.NewerFormat, match=r"epoch_state\.json has format version 2.*Upgrade"):
        train(folder)
