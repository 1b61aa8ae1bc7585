import dagster as dg
import pytest

from sam_laplace_assets.automation import (
    carry_out_refresh,
    nightly_refresh,
    refresh_everything,
    register_split_partitions,
)
from sam_laplace_assets.definitions import defs
from sam_laplace_assets.jobs import STARTED_BY
from sam_laplace_assets.settings import SettingsError
from sam_laplace_assets_tests.small_project import BASE, add_sample


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(instance):
    """What the sensor asks for, which is then done as the daemon would."""
    context = dg.build_sensor_context(instance=instance, definitions=defs)
    result = register_split_partitions(context)
    if isinstance(result, dg.SkipReason):
        return result.skip_message
    for request in result.dynamic_partitions_requests:
        instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    return {request.partitions_def_name: list(request.partition_keys) for request in result.dynamic_partitions_requests}


def test_a_fresh_instance_gets_the_base_splits(read_only, instance):
    assert tick(instance) == {"sam_split": list(BASE), "sam_training_split": ["train"]}


def test_there_is_nothing_to_do_when_all_splits_are_partitions(read_only, instance):
    tick(instance)
    assert tick(instance) == "All 3 splits are partitions: train, val, test."


def test_a_named_folder_becomes_a_partition_and_a_training_one_is_mirrored(project, instance):
    tick(instance)
    add_sample(project.folder / "splits" / "test-caves", "caves/0", 1)
    assert tick(instance) == {"sam_split": ["test-caves"]}
    add_sample(project.folder / "splits" / "train-2026q4", "caves/0", 1)
    assert tick(instance) == {"sam_split": ["train-2026q4"], "sam_training_split": ["train-2026q4"]}


def test_a_folder_without_a_role_does_not_become_a_partition(project, instance):
    tick(instance)
    for name in ("trian", "Test-Upper", "notes", "testing"):
        (project.folder / "splits" / name).mkdir(parents=True)
    assert "All 3 splits are partitions" in tick(instance)


def test_settings_that_cannot_be_read_fail_the_tick_with_their_message(project, instance):
    project.config.write_text("data: {}")
    with pytest.raises(SettingsError, match=r"data.images_root: missing"):
        tick(instance)


def test_the_sensor_is_on_from_the_start():
    sensor = defs.get_sensor_def("register_split_partitions")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING


@pytest.mark.parametrize("name", ["retrain_on_change", "nightly_refresh"])
def test_what_retrains_is_off_until_it_is_switched_on(name):
    (one,) = [one for one in (*defs.sensors, *defs.schedules) if one.name == name]
    assert one.default_status.value == "STOPPED"


def carry_out(instance, cursor=None):
    context = dg.build_sensor_context(instance=instance, definitions=defs, cursor=cursor)
    return carry_out_refresh(context)


def test_a_refresh_is_carried_out_step_by_step_once_it_was_asked_for(project):
    project.change(training={"num_epochs": 3}, automation={"debounce_seconds": 0})
    with project.instance() as instance:
        assert "has not run since" in carry_out(instance).skip_message
        assert refresh_everything.execute_in_process(instance=instance).success
        asked = carry_out(instance)
        assert [request.job_name for request in asked.run_requests] == ["train_and_fit"]
    project.refresh()
    with project.instance() as instance:
        done = carry_out(instance, asked.cursor)
        assert done.run_requests == []
        assert done.skip_reason.skip_message == "Nothing changed: everything is current."
        assert "has not run since" in carry_out(instance, done.cursor).skip_message


def test_the_night_asks_for_a_refresh_that_counts_as_unattended():
    request = nightly_refresh(dg.build_schedule_context())
    assert request.tags[STARTED_BY] == "nightly_refresh"


def test_a_refresh_says_what_is_out_of_date(project):
    project.change(prompt_generation={"num_promptsets_test": 3})
    with project.instance() as instance:
        result = refresh_everything.execute_in_process(instance=instance)
        logged = [one.user_message for one in instance.all_logs(result.run_id)]
    assert "prompt_sets[test]: 2 samples stale" in logged
    assert "sam_cache[test]: follows prompt_sets[test]" in logged
