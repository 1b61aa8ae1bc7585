import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple

import pytest
import yaml
from click.testing import CliRunner

from sam_laplace_assets.cli import cli, main
from sam_laplace_assets.settings import SETTINGS_VARIABLE, load_settings

Disk = namedtuple("Disk", "total used free")


def call(*arguments):
    """Exit code and output of a command that this process runs."""
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, result.output


def told_by_main(monkeypatch, *arguments):
    """What `main` exits with."""
    monkeypatch.setattr(sys, "argv", ["sam-laplace", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_init_writes_a_template_that_loads(tmp_path):
    code, output = call("init", str(tmp_path / "config.yaml"))
    assert code == 0
    assert "sam-laplace plan" in output
    settings = load_settings(tmp_path / "config.yaml")
    assert settings.data.images_root == tmp_path / "images"
    assert settings.warnings == ()


def test_the_templates_values_are_the_defaults(tmp_path):
    call("init", str(tmp_path / "config.yaml"))
    written = load_settings(tmp_path / "config.yaml")
    minimal = tmp_path / "minimal.yaml"
    minimal.write_text(yaml.safe_dump({"data": {"images_root": "a", "masks_root": "b", "project_root": "c"},
                                       "sam": {"checkpoint": "x.pth"}}))  # fmt: skip
    for section in ("prompt_generation", "head", "training", "laplace", "mlflow", "storage"):
        assert getattr(written, section) == getattr(load_settings(minimal), section)


def test_init_refuses_to_overwrite(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("mine")
    code, output = call("init", str(path))
    assert code == 1
    assert "is there already" in output
    assert path.read_text() == "mine"


def test_plan_prints_prompt_sets_and_bytes_before_anything_is_made(new_project):
    code, output = call("plan")
    assert code == 0, output
    table = {tuple(line.split()[:2]): line.split()[2:] for line in output.splitlines()[1:10]}
    assert table["sam_cache", "train"][:2] == ["26", "26"]  # 0.8 of 16 samples are 13, two sets each
    assert "to write: 0.0" in output
    assert "hours are known once a run has shown its rate" in output
    assert not any(new_project.root.rglob("*.npy"))


def test_plan_finds_nothing_to_write_when_all_is_made(read_only):
    code, output = call("plan")
    assert code == 0
    assert "to write: 0.00 GB, 0.00 hours" in output
    assert "?" not in output


def test_plan_knows_the_rate_of_earlier_runs(project):
    project.change(prompt_generation={"num_promptsets_test": 4000})
    code, output = call("plan", "--split", "test")
    assert code == 0
    row = next(line for line in output.splitlines() if line.startswith("sam_cache"))
    assert row.split()[2] == "8,000"
    assert float(row.split()[-1]) > 0


def test_plan_refuses_what_does_not_fit_on_the_disk(new_project, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(2**30, 2**30 - 2**20, 2**20))
    code, output = call("plan")
    assert code == 1
    assert "GB would be written below" in output
    assert "lower prompt_generation.num_promptsets_*" in output
    assert "Traceback" not in output


def test_run_says_that_nothing_is_missing(read_only):
    code, output = call("run")
    assert code == 0
    assert "Nothing is missing or out of date; no step was launched" in output


def test_run_makes_one_split(new_project):
    code, output = call("run", "--split", "test", "--asset", "all_samples", "--asset", "manifest")
    assert code == 0
    assert "Made 2 asset partitions in" in output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--split", "trian"), "Known splits: train, val, test."),
        (("run", "--split", "../x"), "Known splits: train, val, test."),
        (("run", "--asset", "sam_cahce"), "There is no asset sam_cahce"),
    ],
)
def test_run_refuses_without_a_traceback(read_only, arguments, said):
    code, output = call(*arguments)
    assert code == 1
    assert output.startswith("Error: ")
    assert said in output


def test_a_failed_run_is_told_without_a_traceback(project):
    (project.folder / "sam.pt").write_bytes((project.folder / "sam.pt").read_bytes()[:1000])
    code, output = call("run")
    assert code == 1
    assert "Error: prepare_split failed in run" in output
    assert "it is cut short or no PyTorch file, at 1,000 bytes" in output
    assert "Traceback" not in output


def test_a_checkpoint_that_is_not_there_is_told_before_anything_runs(new_project):
    (new_project.folder / "sam.pt").unlink()
    for command in ("plan", "run"):
        code, output = call(command)
        assert code == 1
        assert "sam.pt is not there. Set sam.checkpoint to one that is." in output
    assert not (new_project.root / "manifests").exists()


def test_a_gpu_that_is_not_there_is_told_before_anything_runs(new_project, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    new_project.change(sam={"device": "cuda"})
    assert "PyTorch sees no GPU here" in told_by_main(monkeypatch, "plan")
    assert not (new_project.root / "manifests").exists()


def test_samples_that_cannot_be_used_are_told(new_project, capfd):
    next((new_project.folder / "masks" / "boxes").iterdir()).unlink()
    new_project.refresh(assets=["all_samples"])
    told = capfd.readouterr().err
    assert "warning: all_samples: 1 of 16 found files or pairs cannot be used: boxes/" in told


def test_a_folder_without_settings_or_demo_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    code, output = call("run")
    assert code == 1
    assert "There is no config.yaml in" in output
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_told(read_only):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, output = call("dev", "--port", str(port))
    assert code == 1
    assert f"Port {port} of this machine is taken. It is needed for the Dagster UI; choose another" in output


def test_plan_of_a_split_that_is_not_there_is_refused(read_only, monkeypatch):
    assert "Known splits: train, val, test." in told_by_main(monkeypatch, "plan", "--split", "trian")


def test_plan_without_images_is_refused(new_project, monkeypatch):
    shutil.rmtree(new_project.folder / "images")
    assert told_by_main(monkeypatch, "plan").startswith("Error: data.images_root is ")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_settings_that_cannot_be_are_told_without_a_traceback(tmp_path, monkeypatch, command):
    (tmp_path / "config.yaml").write_text("data: {}")
    monkeypatch.setenv(SETTINGS_VARIABLE, str(tmp_path / "config.yaml"))
    told = told_by_main(monkeypatch, command)
    assert told.startswith("Error: Settings file ")
    assert "data.images_root: missing" in told


def test_the_installed_command_exits_with_1_and_no_traceback(tmp_path):
    environment = os.environ | {SETTINGS_VARIABLE: str(tmp_path / "nowhere.yaml")}
    command = [sys.executable, "-m", "sam_laplace_assets.cli", "plan"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Settings file ")
    assert "Traceback" not in done.stderr


def test_a_dagster_home_that_was_not_there_is_made_with_the_shipped_settings(new_project, monkeypatch, tmp_path):
    home = tmp_path / "another" / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    code, _ = call("plan")
    assert code == 0
    assert "telemetry" in (home / "dagster.yaml").read_text()


def test_an_instance_file_of_an_earlier_version_is_replaced_and_a_changed_one_is_left(project, monkeypatch):
    path = project.folder / "dagster_home" / "dagster.yaml"
    path.write_text("telemetry: {enabled: false}\n")
    assert call("plan")[0] == 0
    assert path.read_text() == "telemetry: {enabled: false}\n"
    earlier = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr("sam_laplace_assets.commands.home.SHIPPED_EARLIER", {earlier})
    assert call("plan")[0] == 0
    assert "WatchfulRunLauncher" in path.read_text()


def test_without_a_dagster_home_it_lies_in_the_project_root(new_project, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME")
    monkeypatch.setattr(os, "environ", os.environ)
    assert call("run", "--asset", "all_samples")[0] == 0
    assert (new_project.root / "dagster_home" / "dagster.yaml").exists()
    monkeypatch.delenv("DAGSTER_HOME")
