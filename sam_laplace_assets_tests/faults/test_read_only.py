"""Folders that cannot be written to: data roots and checkpoints need not be, a project root says what to do."""

import shutil

import pytest

from sam_laplace_assets.headless import RunFailed
from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.faults.mounts import read_only as cannot_be_written
from sam_laplace_assets_tests.faults.mounts import small_disk
from sam_laplace_assets_tests.small_project import SmallProject, hashes


@pytest.fixture
def on_a_disk(made_project, tmp_path, monkeypatch, plain_pictures):
    """A copy of the made project, and the disk that its project root is."""
    project = SmallProject(tmp_path / "copy")
    with small_disk(project.root, size="256M") as disk:
        made_project.copy(project.folder)
        yield project.use(monkeypatch), disk


def test_a_project_that_cannot_be_written_to_can_be_looked_at_and_says_what_to_do(on_a_disk):
    project, disk = on_a_disk
    before = hashes(project.root)
    disk.read_only()
    assert project.refresh() == []
    project.change(training={"num_epochs": 1})
    with pytest.raises(RunFailed) as refused:
        project.refresh("train")
    told = str(refused.value)
    assert "its disk may only be read" in told
    assert str(project.root) in told
    assert "Have it mounted for writing, then run again" in told
    assert hashes(project.root) == before
    disk.writable()
    assert project.refresh("train")
    assert project.refresh("train") == []
    keep("project root read-only", group="disk", tried=1, survived=1, gets="told so; goes on once it is writable")


def test_a_new_project_whose_root_cannot_be_written_to_says_so_at_once(new_project):
    with small_disk(new_project.root) as disk:
        disk.read_only()
        with pytest.raises(RunFailed, match="its disk may only be read"):
            new_project.refresh("train")
        assert list(new_project.root.iterdir()) == []


def test_data_and_checkpoint_that_cannot_be_written_to_are_all_that_is_needed(
    made_project, tmp_path, monkeypatch, plain_pictures
):
    project = SmallProject(tmp_path)
    for name in ("images", "masks", "splits"):
        if (made_project.folder / name).is_dir():
            shutil.copytree(made_project.folder / name, tmp_path / name)
    shutil.copytree(made_project.folder / "dagster_home", tmp_path / "dagster_home",
                    ignore=lambda folder, names: [name for name in names if name != "dagster.yaml"])  # fmt: skip
    (tmp_path / "checkpoint").mkdir()
    shutil.copyfile(made_project.folder / "sam.pt", tmp_path / "checkpoint" / "sam.pt")
    shutil.copyfile(made_project.config, project.config)
    project.change(sam={"checkpoint": "checkpoint/sam.pt"})
    project.use(monkeypatch)
    folders = [tmp_path / name for name in ("images", "masks", "checkpoint")]
    before = [hashes(folder) for folder in folders]
    with cannot_be_written(folders[0]), cannot_be_written(folders[1]), cannot_be_written(folders[2]):
        project.refresh()
    assert [hashes(folder) for folder in folders] == before
    assert project.versions() == made_project.versions()
    keep("data and checkpoint read-only", group="disk", tried=1, survived=1, gets="all is made as ever")
