import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from sam_laplace_assets import load_posterior
from sam_laplace_assets.assets.champion import Candidate, score_candidate
from sam_laplace_assets.domain.head import head_inputs, restore_head
from sam_laplace_assets.domain.posterior import restore_laplace
from sam_laplace_assets.domain.predictive import predict
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.validation import open_validation_pack
from sam_laplace_assets_tests.small_project import failure


@pytest.fixture
def candidate(read_only):
    return only(read_only)


def only(project):
    (run,) = project.paths.posteriors.glob("run_*")
    return Candidate.open(run.name.removeprefix("run_"), project.paths)


def test_a_run_has_the_originals_files(candidate):
    assert {path.name for path in candidate.posterior.folder.iterdir()} == {
        "laplace_state.pt", "laplace_config.yaml", "posterior_meta.json"
    }  # fmt: skip


def test_it_loads_from_its_folder_alone_and_predicts_what_the_champion_is_judged_by(candidate, tmp_path):
    alone = shutil.copytree(candidate.posterior.folder, tmp_path / "elsewhere")
    predictor = load_posterior(alone)
    head, laplace = candidate.restore()
    x = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    clipped = head_inputs(x, logit_clip=candidate.posterior.meta["logit_clip"])
    expected = predict(laplace, head, clipped)
    mean, variance = predictor.logits(x)
    torch.testing.assert_close(mean, expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance, expected.variance, rtol=1e-4, atol=1e-9)


def test_a_folder_that_holds_no_posterior_is_named(tmp_path):
    with pytest.raises(NotMade, match=r"nothing is not there"):
        load_posterior(tmp_path / "nothing")


def test_the_meta_documents_what_a_reader_needs_to_trust_it(candidate, read_only):
    meta = json.loads((candidate.posterior.folder / "posterior_meta.json").read_text())
    assert meta["format"] == "laplace_posterior"
    assert meta["version"] == 3
    assert meta["training_split"] == "train"
    assert meta["head"]["run_id"] == candidate.head.run_id
    assert meta["head"]["overrides"] == {}
    assert meta["head"]["sha256"] == hashlib.sha256((candidate.head.folder / "best.pt").read_bytes()).hexdigest()
    assert meta["packs"] == {"train": read_only.version("hdf5_pack", "train"),
                             "validation": read_only.version("hdf5_pack", "val")}  # fmt: skip
    assert (meta["likelihood"], meta["target_layer"], meta["approx"]) == (
        "Bernoulli per pixel",
        "final_conv",
        "diagonal",
    )
    assert meta["parameters"] == 5
    assert meta["prior_search"]["grid"] == [0.01, 1.0, 100.0]
    assert len(meta["prior_search"]["val_nll"]) == 3
    assert meta["prior_precision"] in meta["prior_search"]["grid"]
    assert meta["likelihood_temperature"] == {"setting": 1.0, "value": 1.0}
    assert (meta["prior_search"]["method"], meta["prior_search"]["curve"]) == ("grid", [])
    assert meta["logit_scale"].keys() == {"value", "nll_before", "nll_after", "applied"}
    assert meta["logit_scale"]["applied"] is False
    assert meta["logit_scale"]["nll_after"] <= meta["logit_scale"]["nll_before"]
    assert meta["counts"] == {"images": 12, "rows": 24, "pixels": 24 * 256 * 256}
    assert np.isfinite(meta["log_marginal_likelihood"])
    assert meta["logit_clip"] == 20.0
    assert isinstance(meta["warnings"], list)
    assert meta["versions"].keys() >= {"torch", "laplace-torch", "numpy"}
    assert len(meta["probe"]["mean"]) == len(meta["probe"]["variance"]) == len(meta["probe"]["pixels"]) == 8
    state = (candidate.posterior.folder / "laplace_state.pt").read_bytes()
    assert meta["sha256"]["laplace_state.pt"] == hashlib.sha256(state).hexdigest()


def test_the_posterior_reloads_on_its_head_and_samples_the_same(candidate):
    head = restore_head(candidate.head.weights())
    one, other = (restore_laplace(head, candidate.posterior.state()) for _ in range(2))
    draws = [laplace.sample(3, generator=torch.Generator().manual_seed(1)) for laplace in (one, other)]
    assert torch.equal(*draws)
    assert (one.H >= 0).all()
    assert torch.isfinite(one.H).all()


def test_the_state_is_plain_tensors(candidate):
    torch.load(candidate.posterior.folder / "laplace_state.pt", weights_only=True)


def test_the_full_approximation_can_be_asked_for(project):
    project.change(laplace={"approx": "full", "likelihood_temperature": "image_cluster"})
    project.refresh("train")
    runs = [json.loads(path.read_text()) for path in project.paths.posteriors.glob("run_*/posterior_meta.json")]
    (meta,) = [meta for meta in runs if meta["approx"] == "full"]
    assert meta["likelihood_temperature"]["setting"] == "image_cluster"
    assert meta["likelihood_temperature"]["value"] != 1.0
    folder = project.paths.posteriors / f"run_{meta['run_id']}"
    assert yaml.safe_load((folder / "laplace_config.yaml").read_text())["approx"] == "full"
    assert torch.load(folder / "laplace_state.pt", weights_only=True)["laplace"]["H"].shape == (5, 5)


def test_the_logit_scale_is_applied_where_it_is_asked_for_and_the_champion_is_judged_with_it(project):
    plain = only(project)
    project.change(laplace={"logit_scaling": True})
    project.refresh("train")
    (name,) = {path.name for path in project.paths.posteriors.glob("run_*")} - {plain.posterior.folder.name}
    scaled = Candidate.open(name.removeprefix("run_"), project.paths)
    recorded = scaled.posterior.meta["logit_scale"]
    assert recorded == plain.posterior.meta["logit_scale"] | {"applied": True}
    assert project.metadata("laplace_posterior", "train")["logits are scaled"] == "yes"
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    (mean, variance), found = (load_posterior(one.posterior.folder).logits(x) for one in (plain, scaled))
    factor = recorded["value"]
    torch.testing.assert_close(found, (factor * mean, factor**2 * variance))
    pack = open_validation_pack(project.paths.validation_pack)
    scores = [score_candidate(one, pack, project.settings) for one in (plain, scaled)]
    assert [one.posterior_nll.mean() for one in scores] == pytest.approx(
        [recorded["nll_before"], recorded["nll_after"]], rel=1e-5, abs=2e-6
    )
    np.testing.assert_array_equal(scores[0].head_nll, scores[1].head_nll)


def test_the_launchpad_takes_the_marginal_likelihood_and_the_temperature_of_images(project):
    assert project.materialise("laplace_posterior", split="train", prior="marginal_likelihood",
                               likelihood_temperature="image_cluster").success  # fmt: skip
    runs = [json.loads(path.read_text()) for path in project.paths.posteriors.glob("run_*/posterior_meta.json")]
    (meta,) = [meta for meta in runs if meta["prior_search"]["method"] == "marginal_likelihood"]
    assert meta["likelihood_temperature"]["setting"] == "image_cluster"
    assert meta["prior_search"]["grid"] == [meta["prior_precision"]]
    assert max(meta["prior_search"]["curve"], key=lambda point: point[1])[0] == pytest.approx(meta["prior_precision"])
    assert project.materialise("laplace_posterior", split="train", likelihood_temperature=30.0).success


def test_what_the_sweep_compares_is_no_part_of_a_posterior(project):
    project.change(laplace={"sweep": [{"approx": "full", "prior_precision": 3.0}]})
    assert "laplace_posterior[train]" not in project.refresh("train")


def test_launchpad_values_are_checked(project):
    result = project.materialise("laplace_posterior", split="train", approx="kron")
    assert not result.success
    assert "'diagonal' or 'full'" in str(result.get_step_failure_events()[0].step_failure_data.error)


@pytest.mark.parametrize("name", ["laplace_state.pt", "laplace_config.yaml"])
def test_a_damaged_posterior_is_refused_by_who_reads_it(project, name):
    folder = only(project).posterior.folder
    (folder / name).write_bytes(b"damaged")
    project.change(champion={"confidence": 0.5})
    assert f"{name} is not the one that was stored" in failure(project.materialise("champion"))


def test_a_damaged_head_is_refused_by_who_reads_it(project):
    (only(project).head.folder / "best.pt").write_bytes(b"damaged")
    project.change(champion={"confidence": 0.5})
    assert "best.pt is not the one that was stored" in failure(project.materialise("champion"))
