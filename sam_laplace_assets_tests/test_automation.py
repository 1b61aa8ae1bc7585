import dagster as dg
import pytest

from sam_laplace_assets.automation import register_split_partitions
from sam_laplace_assets.definitions import defs
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
