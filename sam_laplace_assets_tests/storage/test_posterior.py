import pytest
import torch

from sam_laplace_assets.domain.plan import Item, Plan
from sam_laplace_assets.storage import files, weights
from sam_laplace_assets.storage.materialise import TooManyFailed
from sam_laplace_assets.storage.posterior import CONFIG, META, STATE, FittedPosterior, PosteriorRun, PosteriorStore
from sam_laplace_assets.storage.runs import current_run
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.weights import Damaged
from sam_laplace_assets_tests.storage.fakes import cut, death, flip, holds, make, unsealed

RUN = "run_train-abc"


def plan(error=None):
    def fit(item, parts):
        if error:
            raise error
        state = {"mean": torch.arange(3.0), "cls_name": "DiagLaplace"}
        head, told = {"final_conv.bias": torch.ones(1)}, {"training_split": "train", "warnings": []}
        return FittedPosterior(state, head, {"approx": "diagonal"}, told)

    return Plan([Item("train-abc", {"run": "digest"})], make=fit)


def store_of(folder):
    return PosteriorStore(folder, folder / "current-train.json")


@pytest.fixture
def folder(tmp_path):
    make(plan(), store_of(tmp_path))
    return tmp_path


def test_a_posterior_comes_back_as_it_was_fitted(folder):
    run = PosteriorRun.open(folder / RUN)
    assert torch.equal(run.state()["mean"], torch.arange(3.0))
    assert torch.equal(run.head()["final_conv.bias"], torch.ones(1))
    assert (run.run_id, run.meta["training_split"], run.meta["run_id"]) == ("train-abc", "train", "train-abc")
    assert current_run(folder / "current-train.json", name="laplace_posterior[train]") == "train-abc"


def test_a_posterior_is_never_made_over(folder):
    before = holds(folder)
    assert make(plan(), store_of(folder)).made == 0
    (item,) = plan().items
    with pytest.raises(Damaged, match="holds a finished run already"):
        store_of(folder).write(item, frozenset(item.parts), plan().make(item, frozenset(item.parts)))
    assert holds(folder) == before


@pytest.mark.parametrize("name", [STATE, CONFIG])
@pytest.mark.parametrize("harm", [lambda path: path.unlink(), cut, flip])
def test_a_missing_or_foreign_file_is_a_loud_error_that_names_it(folder, name, harm):
    harm(folder / RUN / name)
    for read in (lambda: PosteriorRun.open(folder / RUN), lambda: make(plan(), store_of(folder))):
        with pytest.raises(Damaged, match=rf"{name} is .*posterior_meta\.json names SHA-256.*delete the folder {RUN}"):
            read()


def test_a_fit_that_dies_is_made_again_to_the_same_content(folder, tmp_path_factory):
    for step in range(100):
        dying = tmp_path_factory.mktemp("dying")
        with death(step) as fate:
            make(plan(), store_of(dying))
        make(plan(), store_of(dying))
        assert holds(dying) == holds(folder)
        if not fate.happened:
            break
    assert step > 9


def test_a_fit_that_fails_says_why_and_keeps_the_pointer(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(TooManyFailed, match=r"^The head's weights are not finite"):
        make(plan(ValueError("The head's weights are not finite")), store_of(empty))
    assert holds(empty) == {}


def test_a_posterior_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotMade, match=r"run_x is not there\. Materialise laplace_posterior first"):
        PosteriorRun.open(tmp_path / "run_x")


def test_a_posterior_of_version_1_is_still_read(folder):
    meta = unsealed((folder / RUN / META).read_text())
    (folder / RUN / STATE).write_bytes(plain := weights.dump({"mean": torch.arange(3.0)}))
    sha256 = meta["sha256"] | {STATE: files.sha256(plain)}
    files.write_json(folder / RUN / META, {**meta, "version": 1, "sha256": sha256})
    assert make(plan(), store_of(folder)).made == 0
    run = PosteriorRun.open(folder / RUN)
    assert torch.equal(run.state()["mean"], torch.arange(3.0))
    with pytest.raises(Damaged, match=r"run_train-abc holds no head.*Materialise laplace_posterior with a label"):
        run.head()


@pytest.mark.parametrize("version", [1, 2])
def test_a_posterior_of_before_logit_scales_were_recorded_has_none(folder, version):
    meta = unsealed((folder / RUN / META).read_text())
    files.write_json(folder / RUN / META, {**meta, "version": version})
    assert PosteriorRun.open(folder / RUN).logit_scale == 1.0


@pytest.mark.parametrize(("applied", "scale"), [(True, 0.4), (False, 1.0)])
def test_a_logit_scale_is_used_if_it_is_applied(folder, applied, scale):
    meta = unsealed((folder / RUN / META).read_text())
    recorded = {"value": 0.4, "nll_before": 0.2, "nll_after": 0.1, "applied": applied}
    files.write_json(folder / RUN / META, {**meta, "logit_scale": recorded})
    assert PosteriorRun.open(folder / RUN).logit_scale == scale


def test_a_newer_version_is_refused(folder):
    meta = unsealed((folder / RUN / META).read_text())
    files.write_json(folder / RUN / META, {**meta, "version": 4})
    with pytest.raises(files.NewerFormat, match=r"posterior_meta\.json has format version 4.*Upgrade"):
        make(plan(), store_of(folder))
