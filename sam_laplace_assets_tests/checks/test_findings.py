"""What all checks have in common: they are carried out by runs, and always have an answer."""

import dagster as dg
import pytest

from sam_laplace_assets.checks import all_checks, arrays_are_finite_and_in_range, head_beats_sam, prior_is_identified
from sam_laplace_assets.checks.findings import PARTITION_TAG, SHOWN, listed
from sam_laplace_assets_tests.checks.looking import look, words

UNSURE = {head_beats_sam, prior_is_identified}  # two epochs on a dozen drawings are not worth more than SAM


def evaluated(instance, check):
    (spec,) = check.check_specs
    history = instance.event_log_storage.get_asset_check_execution_history(spec.key, limit=10)
    return [record.event.asset_check_evaluation for record in history]


@pytest.fixture(scope="module")
def damaged(made_project, tmp_path_factory):
    """A copy whose files are put back after each test."""
    return made_project.copy(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("check", all_checks, ids=lambda check: next(iter(check.check_specs)).name)
def test_the_runs_that_made_everything_carried_it_out_and_at_most_a_warning_came_of_it(read_only, check):
    with read_only.instance() as instance:
        found = evaluated(instance, check)
    assert found
    for one in found:
        assert one.passed or (check in UNSURE and one.severity is dg.AssetCheckSeverity.WARN), one.metadata


@pytest.mark.parametrize("check", all_checks, ids=lambda check: next(iter(check.check_specs)).name)
def test_where_nothing_is_made_it_fails_and_says_what_to_do(new_project, check):
    for split in ("train", None):
        result = look(check, split)
        assert not result.passed
        assert "Materialise " in words(result)


@pytest.mark.parametrize("name", [
    "manifests/all_samples.parquet", "manifests/train.parquet", "prompt_sets/train.ledger.parquet",
    "sam_precompute/train.ledger.parquet", "training_data/no_image/train_index.parquet",
    "training_data/no_image/train.h5", "training_data/no_image/train_shards/*.h5",
    "training_data/no_image/validation_pack.json", "checkpoints/no_image/current-train.json",
    "checkpoints/no_image/run_*/epoch_state.json", "checkpoints/no_image/run_*/best.pt",
    "laplace/no_image/current-train.json", "laplace/no_image/run_*/posterior_meta.json",
    "laplace/no_image/run_*/laplace_state.pt",
])  # fmt: skip
@pytest.mark.parametrize("content", [b"", b"[]", b"null", None], ids=["empty", "list", "null", "half"])
def test_damage_to_any_file_makes_a_check_fail_and_none_break(damaged, monkeypatch, name, content):
    damaged.use(monkeypatch)
    (path,) = damaged.root.glob(name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    try:
        results = [look(check, "train") for check in all_checks]
    finally:
        path.write_bytes(whole)
    assert any(not result.passed and result.severity is dg.AssetCheckSeverity.ERROR for result in results)


def test_it_is_about_the_partition_of_the_run_or_about_all(project):
    project.paths.pack("val").write_bytes(b"damaged")
    assert look(arrays_are_finite_and_in_range, "train").passed
    assert not look(arrays_are_finite_and_in_range, "val").passed
    result = look(arrays_are_finite_and_in_range)
    assert not result.passed
    assert result.metadata["train"].value == "holds"
    assert "val.h5 is not a readable HDF5 file" in result.metadata["val"].value


def test_a_run_of_checks_alone_takes_its_partition_from_the_tag(project):
    selected = dg.AssetSelection.checks(arrays_are_finite_and_in_range)
    job = dg.Definitions(asset_checks=[arrays_are_finite_and_in_range],
                         jobs=[dg.define_asset_job("look", selection=selected)]).resolve_job_def("look")  # fmt: skip
    with project.instance() as instance:
        job.execute_in_process(instance=instance, tags={PARTITION_TAG: "val"})
        newest = evaluated(instance, arrays_are_finite_and_in_range)[0]
    assert newest.metadata.keys() == {"val", "val: rows", "val: samples"}


def test_a_key_that_is_no_split_is_no_path(read_only):
    result = look(arrays_are_finite_and_in_range, "../val")
    assert not result.passed
    assert "not a plain name" in words(result)


def test_long_lists_are_cut():
    assert listed(["b", "a"]) == "a, b"
    assert listed([f"{at:02d}" for at in range(SHOWN + 3)]).endswith(f"{SHOWN - 1:02d} and 3 more")
