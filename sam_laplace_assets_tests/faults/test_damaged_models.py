"""Damaged heads, posteriors and titles: refused by name, never used, and made again as they were."""

import shutil
from collections import Counter

import pytest

from sam_laplace_assets.storage import weights
from sam_laplace_assets_tests.faults import damages
from sam_laplace_assets_tests.faults.damages import (
    DELETE_FOLDER,
    HARMLESS,
    MADE_AGAIN,
    PUT_BACK,
    REFUSED,
    UNNOTICED,
    Kind,
    Patient,
    became_of,
    became_of_a_flip,
    flip,
    in_words,
)
from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.small_project import draw_plainly, failure

FLIPS = 20
HEAD = ("epoch_state.json", "config.yaml", "best.pt", "last.pt", "optimizer_last.pt", "scaler_last.pt")
POSTERIOR = ("posterior_meta.json", "laplace_state.pt", "laplace_config.yaml")
KINDS = (
    *(Kind(f"{name} of a head", f"checkpoints/no_image/run_*/{name}", "head_checkpoint", "train", damages.head,
           other=f"checkpoints/no_image/run_*/{name}", remedy=DELETE_FOLDER) for name in HEAD),
    Kind("pointer to a head", "checkpoints/no_image/current-train.json", "head_checkpoint", "train", damages.head),
    *(Kind(f"{name} of a posterior", f"laplace/no_image/run_*/{name}", "laplace_posterior", "train", damages.posterior,
           other=f"laplace/no_image/run_*/{name}", remedy=DELETE_FOLDER) for name in POSTERIOR),
    Kind("pointer to a posterior", "laplace/no_image/current-train.json", "laplace_posterior", "train",
         damages.posterior),
    Kind("champion.json", "laplace/no_image/champion.json", "champion", None, damages.champion),
    Kind("champion_history.jsonl", "laplace/no_image/champion_history.jsonl", "champion", None, damages.champion,
         remedy=PUT_BACK),
)  # fmt: skip
USED = {"head_checkpoint": "laplace_posterior", "laplace_posterior": "champion", "champion": "evaluation"}


@pytest.fixture(scope="module")
def patient(made_project, tmp_path_factory):
    return Patient(made_project.copy(tmp_path_factory.mktemp("patient")), made_project)


@pytest.fixture(scope="module")
def values(made_project):
    """What each reader sees of the sound project."""
    with pytest.MonkeyPatch.context() as patch:
        made_project.use(patch)
        return {kind.name: kind.read(made_project) for kind in KINDS}


@pytest.fixture
def damaged(patient, monkeypatch):
    """The project, brought back to what it was after the test."""
    draw_plainly(monkeypatch)
    patient.project.use(monkeypatch)
    yield patient
    patient.restore()


def harms_of(kind):
    harms = {"half": damages.half, "empty": damages.empty}
    return harms | ({} if kind.remedy == PUT_BACK else {"missing": damages.missing})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_that_is_cut_is_refused_by_name_or_made_again(damaged, values, kind):
    damages.half(kind, damaged.place(kind))
    why = damaged.fresh(kind)
    assert why
    told = why if why.startswith("waits") else ""
    if told:
        assert damages.names_it(kind, damaged, told), told
        damages.do_as_told(damaged, kind)
    if kind.remedy != PUT_BACK:
        assert damaged.project.materialise(kind.asset, split=kind.split).success
    assert damaged.read(kind) == (values[kind.name], "")
    assert not damaged.fresh(kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_flipped_bit_never_changes_what_a_reader_sees(damaged, values, kind):
    for seed in range(4):
        flip(damaged.place(kind), seed)
        found = became_of_a_flip(damaged, kind, values[kind.name])
        damaged.restore_file(kind)
        assert found in (MADE_AGAIN, REFUSED, HARMLESS)


@pytest.mark.parametrize("name", ["best.pt of a head", "laplace_state.pt of a posterior"])
def test_what_follows_is_not_made_from_weights_that_are_no_numbers(damaged, name):
    kind = next(one for one in KINDS if one.name == name)
    place = damaged.place(kind)
    state = weights.load(place.read_bytes())
    place.write_bytes(damages.nothing_finite(state.get("head", state)))
    damaged.project.change(laplace={"prior_precision_grid": [0.5, 5.0]}, champion={"resamples": 150})
    result = damaged.project.materialise(USED[kind.asset], split="train" if kind.asset == "head_checkpoint" else None)
    if kind.asset == "laplace_posterior":  # the holder's own files
        assert not result.success or "was left out" in damaged.project.metadata("champion")["verdict"]
    else:
        assert not result.success
        assert damages.names_it(kind, damaged, failure(result)), failure(result)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_whatever_is_done_to_a_file_it_is_refused_by_name_or_made_again_as_it_was(damaged, values, kind):
    found = {}
    for name, harm in harms_of(kind).items():
        harm(kind, damaged.place(kind))
        found[name] = became_of(damaged, kind, values[kind.name])
        damaged.restore()
    for seed in range(FLIPS):
        flip(damaged.place(kind), seed)
        found[f"flip {seed}"] = became_of_a_flip(damaged, kind, values[kind.name])
        damaged.restore_file(kind)
    noticed = [one for one in found.values() if one in (MADE_AGAIN, REFUSED, HARMLESS)]
    keep(f"damaged: {kind.name}", group="damaged files", tried=len(found), survived=len(noticed),
         gets=in_words(Counter(found.values())))  # fmt: skip
    assert len(noticed) == len(found), {name: one for name, one in found.items() if one.startswith(UNNOTICED)}


@pytest.mark.faults
def test_the_files_of_another_run_are_refused_by_name(damaged):
    project = damaged.project
    assert project.materialise("head_checkpoint", split="train", label="other", seed=9).success
    assert project.materialise("laplace_posterior", split="train", label="other").success
    tried = 0
    for kind in KINDS:
        if kind.remedy != DELETE_FOLDER:
            continue
        place = damaged.place(kind)
        other = next(path for path in project.root.glob(kind.pattern) if path.parent != place.parent)
        if other.read_bytes() == place.read_bytes():
            continue
        shutil.copyfile(other, place)
        pointer = project.root / kind.pattern.split("/run_")[0] / "current-train.json"
        shutil.copy2(damaged.sound.root / pointer.relative_to(project.root), pointer)
        told = damaged.fresh(kind) + damaged.read(kind)[1]
        assert damages.names_it(kind, damaged, told), f"{kind.name}: {told}"
        damaged.restore_file(kind)
        tried += 1
    keep("files of another run", group="damaged files", tried=tried, survived=tried, gets=REFUSED)
    assert tried > 5
