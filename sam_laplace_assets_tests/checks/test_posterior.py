"""A posterior that loads but predicts otherwise is found; one without a probe is read as before."""

import hashlib
import json

import pytest
import torch

from sam_laplace_assets.checks import posterior_reloads, prior_is_identified
from sam_laplace_assets_tests.checks.looking import look, warns, words
from sam_laplace_assets_tests.storage.fakes import unsealed


def meta_of(project):
    (path,) = project.paths.posteriors.glob("run_*/posterior_meta.json")
    return path, unsealed(path.read_text())


def change_meta(project, change):
    path, meta = meta_of(project)
    path.write_text(json.dumps(change(meta)))


def change_state(project, change):
    """Another state, with the SHA-256 that belongs to it."""
    path, _ = meta_of(project)
    state_path = path.with_name("laplace_state.pt")
    saved = torch.load(state_path, weights_only=True)
    torch.save(saved | {"laplace": change(saved["laplace"])}, state_path)
    sha256 = hashlib.sha256(state_path.read_bytes()).hexdigest()
    change_meta(project, lambda meta: meta | {"sha256": meta["sha256"] | {"laplace_state.pt": sha256}})


def without_probe(meta):
    return {name: value for name, value in meta.items() if name != "probe"}


def test_a_posterior_predicts_from_its_files_what_it_did_when_it_was_fitted(read_only):
    result = look(posterior_reloads, "train")
    assert result.passed
    assert "predictions differ by 0.0e+00 of the largest one; 1e-04 is allowed" in words(result)


@pytest.mark.parametrize("change", [
    lambda state: state | {"prior_precision": state["prior_precision"] * 1.01 + 1e4},
    lambda state: state | {"H": state["H"] * 2},
    lambda state: state | {"temperature": 2.0},
])  # fmt: skip
def test_a_state_that_loads_and_predicts_otherwise_is_found_by_the_probe_alone(project, change):
    change_state(project, change)
    result = look(posterior_reloads, "train")
    assert not result.passed
    assert result.severity.value == "ERROR"
    assert "no longer predicts what it did when it was fitted" in words(result)
    change_meta(project, without_probe)
    assert look(posterior_reloads, "train").passed


def test_a_posterior_without_a_probe_is_read_and_said_to_have_none(project):
    change_meta(project, without_probe)
    result = look(posterior_reloads, "train")
    assert result.passed
    assert "none: it was fitted before predictions were recorded" in words(result)


def test_a_posterior_without_a_probe_is_not_fitted_again(project):
    change_meta(project, without_probe)
    before = meta_of(project)[0].read_bytes()
    assert project.refresh("train") == []
    assert project.materialise("laplace_posterior", split="train").success
    assert meta_of(project)[0].read_bytes() == before


def test_a_state_that_is_not_the_one_that_was_stored_is_told(project):
    meta_of(project)[0].with_name("laplace_state.pt").write_bytes(b"damaged")
    assert "laplace_state.pt is not the one that was stored" in words(look(posterior_reloads, "train"))


def test_a_posterior_of_another_head_is_told(project):
    change_state(project, lambda state: state | {"mean": state["mean"] + 1})
    assert "The posterior belongs to another head" in words(look(posterior_reloads, "train"))


def test_a_prior_that_validation_does_not_decide_is_a_warning_with_the_figures(read_only):
    _, meta = meta_of(read_only)
    assert meta["prior_search"]["flat"]
    result = look(prior_is_identified, "train")
    assert warns(result)
    assert "The prior precision is not identified" in words(result)
    assert result.metadata["train: prior precision"].value == 100.0


def test_a_prior_that_was_chosen_within_the_grid_is_identified(project):
    change_meta(project, lambda meta: meta | {"warnings": []})
    assert look(prior_is_identified, "train").passed
