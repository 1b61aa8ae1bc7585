import os
import shutil
import time

import pytest

from sam_laplace_assets.storage.watch import watch
from sam_laplace_assets_tests.small_project import add_sample


def state(project):
    return watch(project.settings).state


def test_nothing_done_is_nothing_changed(read_only):
    assert watch(read_only.settings) == watch(read_only.settings)


@pytest.mark.parametrize("where", ["images", "masks", "splits/test-caves/images", "splits/test-caves/masks"])
def test_a_file_that_comes_changes_goes_or_returns_is_seen(project, where):
    add_sample(project.folder / "splits" / "test-caves", "caves/0", 1)
    before = state(project)
    path = project.folder / where / "more" / "file.png"
    path.parent.mkdir()
    path.write_bytes(b"one")
    seen = [before, state(project)]
    path.write_bytes(b"more")
    seen.append(state(project))
    path.unlink()
    seen.append(state(project))
    assert len(set(seen)) == len(seen)


def test_a_file_of_the_same_size_and_another_time_is_seen(project):
    path = next((project.folder / "images").rglob("*.png"))
    before = state(project)
    os.utime(path, (1, 1))
    assert state(project) != before


def test_settings_checkpoint_splits_file_and_group_table_are_watched(project):
    (project.folder / "official.csv").write_text("sample_id,split\n")
    (project.folder / "groups.csv").write_text("sample_id,patient\n")
    project.change(data={"splits_file": "official.csv", "group_by": "groups.csv:patient"})
    for name in ("config.yaml", "sam.pt", "official.csv", "groups.csv"):
        before = state(project)
        with (project.folder / name).open("ab") as file:
            file.write(b"\n")
        assert state(project) != before, name


def test_a_copy_that_keeps_old_times_counts_as_written_now(project):
    path = next((project.folder / "images").rglob("*.png"))
    os.utime(path, (1, 1))
    before = time.time() - 1
    shutil.copy2(path, path.with_name("copy.png"))
    assert watch(project.settings).changed > before


def test_a_file_that_is_removed_or_moved_away_counts_as_written_now(project):
    path = next((project.folder / "masks").rglob("*.npy"))
    earlier = watch(project.settings).changed
    time.sleep(0.02)
    path.rename(project.folder / path.name)
    assert watch(project.settings).changed > earlier


def test_a_link_that_leads_in_circles_or_out_is_not_gone_into(project):
    (project.folder / "images" / "round").symlink_to(project.folder / "images")
    outside = project.folder / "outside"
    outside.mkdir()
    (outside / "file.png").write_bytes(b"one")
    (project.folder / "images" / "out").symlink_to(outside)
    before = state(project)
    (outside / "file.png").write_bytes(b"other")
    assert state(project) == before
    shutil.rmtree(outside)
    assert state(project) != before  # the link leads nowhere now


def test_a_root_that_is_not_there_is_an_empty_one(project):
    shutil.rmtree(project.folder / "masks")
    assert state(project)
