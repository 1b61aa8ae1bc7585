import os
import subprocess
import sys
import warnings

import dagster as dg
import yaml
from dagster._core.workspace.load import location_origins_from_yaml_paths

from sam_laplace_assets.definitions import STEPS_ARE_FORKED, defs
from sam_laplace_assets_tests.small_project import REPOSITORY

KEYS = {
    "all_samples", "manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels",
    "validation_pack", "head_checkpoint", "laplace_posterior", "champion",
}  # fmt: skip
HEAVY = ("torch", "mlflow", "laplace", "segment_anything", "matplotlib", "torchvision", "pandas", "scipy")


POOL = "ARROW_DEFAULT_MEMORY_POOL"


def nodes():
    graph = defs.resolve_asset_graph()
    return {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}


def test_the_graph_has_the_fixed_keys_in_the_four_groups():
    found = nodes()
    assert found.keys() >= KEYS
    assert {node.group_name for node in found.values()} == {"data", "features", "model", "uncertainty"}


def test_every_asset_says_what_it_is_and_has_a_code_version():
    for name, node in nodes().items():
        assert node.description, name
        assert node.code_version, name


def test_what_uses_the_encoder_or_trains_is_in_the_gpu_pool():
    pooled = {name for name, node in nodes().items() if "gpu" in node.pools}
    assert pooled >= {"sam_cache", "head_checkpoint", "laplace_posterior"}
    assert not pooled & {"all_samples", "manifest", "prompt_sets", "training_index", "hdf5_pack"}


def test_splits_and_training_splits_partition_the_graph():
    named = {name: getattr(node.partitions_def, "name", None) for name, node in nodes().items()}
    for name in ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels"):
        assert named[name] == "sam_split"
    assert named["head_checkpoint"] == named["laplace_posterior"] == "sam_training_split"
    assert named["all_samples"] is named["validation_pack"] is named["champion"] is None


def test_no_definition_is_deprecated_by_dagster():
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        warnings.filterwarnings("ignore", message="The `__fields__` attribute")  # Dagster's own, of pydantic
        dg.Definitions.validate_loadable(defs)


def test_whatever_has_a_switch_says_what_it_does():
    for one in (*defs.sensors, *defs.schedules):
        assert one.description, one.name


def test_the_launchpads_fields_are_empty_by_default_and_explained():
    for name in ("all_samples", "manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels",
                 "head_checkpoint", "laplace_posterior", "champion"):  # fmt: skip
        fields = defs.resolve_assets_def(name).op.config_schema.config_type.fields
        assert fields, name
        for key, field in fields.items():
            assert not field.is_required, (name, key)
            assert not field.default_provided or field.default_value in (None, False), (name, key)
            assert field.description, (name, key)


def test_the_instance_file_loads_and_limits_the_pool_to_one():
    settings = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    assert settings["telemetry"]["enabled"] is settings["nux"]["enabled"] is False
    assert settings["concurrency"]["pools"]["default_limit"] == 1


def test_the_instance_file_is_taken_by_dagster(tmp_path):
    (tmp_path / "dagster.yaml").write_text((REPOSITORY / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_ref(dg._core.instance.InstanceRef.from_dir(str(tmp_path))) as instance:
        assert not instance.telemetry_enabled
        assert instance.run_monitoring_enabled
        assert instance.run_retries_enabled


def test_the_workspace_file_names_these_definitions():
    (origin,) = location_origins_from_yaml_paths([str(REPOSITORY / "workspace.yaml")])
    target = origin.loadable_target_origin
    assert (target.module_name, target.attribute) == ("sam_laplace_assets.definitions", "defs")
    assert origin.location_name == "sam_laplace"


def test_the_code_location_loads_without_heavy_libraries():
    code = f"import sys, sam_laplace_assets.definitions; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_arrow_gives_memory_back_unless_somebody_wants_it_to_allocate_otherwise():
    code = "import sam_laplace_assets.definitions, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    for wanted in ({}, {POOL: "mimalloc"}):
        environment = {name: value for name, value in os.environ.items() if name != POOL} | wanted
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == wanted.get(POOL, "system")


def test_steps_are_forked_from_a_process_that_has_imported_the_code_location():
    modules = STEPS_ARE_FORKED["forkserver"]["preload_modules"]
    code = (
        f"import gc, sys, importlib; [*map(importlib.import_module, {modules})]; print(gc.get_freeze_count() > 10**5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert modules[0] == "sam_laplace_assets.definitions"
