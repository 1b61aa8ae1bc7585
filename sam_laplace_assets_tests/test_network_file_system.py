"""A project root on a network file system: asked for nothing that one may lack, and not believed where it is behind."""

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sam_laplace_assets.settings import SETTINGS_VARIABLE
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.lease import Lease
from sam_laplace_assets.storage.pack import Pack, PackRefused, PackStore
from sam_laplace_assets.storage.rows import OpenPack
from sam_laplace_assets.storage.samples import ListingFailed, list_samples
from sam_laplace_assets_tests.faults.crashing import tiny_project
from sam_laplace_assets_tests.faults.mounts import read_only
from sam_laplace_assets_tests.small_project import SmallProject, add_sample, hashes
from sam_laplace_assets_tests.storage.fakes import Work, make, pack_plan

STALE = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
CALLS = "mmap,flock,fcntl,link,linkat"
LOCKS = ("F_SETLK", "F_SETLKW", "F_OFD_SETLK", "F_OFD_SETLKW", "F_SETLEASE")
REFRESH = """
import sys
from pathlib import Path
from sam_laplace_assets_tests.small_project import SmallProject
SmallProject(Path(sys.argv[1])).refresh()
"""
ALL_THREE = """
import fcntl, mmap, os, sys
from pathlib import Path
folder = Path(sys.argv[1]) / "project"
folder.mkdir()
(folder / "file").write_bytes(b"x" * 4096)
file = (folder / "file").open("r+b")
mmap.mmap(file.fileno(), 4096)
mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE)
fcntl.flock(file, fcntl.LOCK_EX)
fcntl.lockf(file, fcntl.LOCK_EX)
os.link(folder / "file", folder / "link")
"""


def traced(folder, script, log):
    """The system calls that a process and its children make while it runs a script over `folder`."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace on this machine")
    environment = os.environ | {
        SETTINGS_VARIABLE: str(folder / "config.yaml"), "DAGSTER_HOME": str(folder / "dagster_home"),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-qq", "-s", "4096", "-e", f"trace={CALLS}", "-o", str(log)]
    done = subprocess.run([*command, sys.executable, "-c", script, str(folder)], env=environment, cwd=folder,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if "PTRACE" in done.stderr:
        pytest.skip(f"this machine lets nobody trace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return log.read_text(errors="replace").splitlines()


def not_on_every_network(calls, root):
    """Calls that some network file system refuses, or answers for one machine alone, on files below a folder."""
    below = [call for call in calls if f"<{root}/" in call or f'"{root}/' in call]
    return [call for call in below if "fcntl(" not in call or any(f", {lock}," in call for lock in LOCKS)]


def test_what_network_file_systems_may_lack_is_seen_where_it_is_used(tmp_path):
    calls = not_on_every_network(traced(tmp_path, ALL_THREE, tmp_path / "calls"), tmp_path / "project")
    names = [re.search(r"(\w+)\(", call)[1] for call in calls]
    assert sorted(names) == ["fcntl", "flock", "link", "mmap", "mmap"]


@pytest.mark.timeout(600)
def test_a_refresh_maps_locks_and_links_no_file_of_the_project_root(tmp_path):
    project = tiny_project(tmp_path / "tiny")
    calls = traced(project.folder, REFRESH, tmp_path / "calls")
    assert {path.name for path in project.root.iterdir()} >= {"sam_precompute", "training_data", "laplace", "reports"}
    assert not_on_every_network(calls, project.root) == []
    # Dagster's own databases are locked, as SQLite does: DAGSTER_HOME is local
    assert not_on_every_network(calls, project.folder / "dagster_home")


def test_data_of_all_kinds_of_splits_is_read_where_it_may_only_be_read(tmp_path, monkeypatch, plain_pictures):
    project = SmallProject.new(tmp_path / "project", classes={"discs": 6}).use(monkeypatch)
    for name, seed in (("discs/90", 90), ("discs/91", 91)):
        add_sample(project.folder / "splits" / "test-far", name, seed)
    data = [project.folder / name for name in ("images", "masks", "splits")]
    before = [hashes(folder) for folder in data]
    with contextlib.ExitStack() as mounted:
        for folder in data:
            mounted.enter_context(read_only(folder))
        assert project.refresh("test-far", "val", assets=("all_samples", "manifest", "prompt_sets", "hdf5_pack",
                                                          "sam_cache", "training_index"))  # fmt: skip
        assert project.refresh("test-far", "val", assets=("hdf5_pack",)) == []
    assert [hashes(folder) for folder in data] == before
    assert len(Pack.open(project.paths.pack("test-far")).safe_ids) == 2


def test_a_file_that_is_replaced_elsewhere_while_it_is_read_is_opened_again(tmp_path, monkeypatch):
    path = tmp_path / "champion.json"
    files.write_json(path, {"run": "new"})
    asked = stale_at_first(monkeypatch, times=2)
    assert files.read_json(path) == {"run": "new"}
    assert asked == [path] * 3


def test_a_file_that_stays_stale_and_one_that_fails_otherwise_are_refused(tmp_path, monkeypatch):
    files.write_bytes(tmp_path / "file", b"content")
    asked = stale_at_first(monkeypatch, times=100)
    with pytest.raises(OSError, match="Stale file handle"):
        files.read_bytes(tmp_path / "file")
    assert len(asked) == files.OPENINGS
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "none")


def stale_at_first(monkeypatch, *, times):
    """Let files be stale so many times before they can be read; the paths that were asked for."""
    asked, read = [], Path.read_bytes

    def read_bytes(path):
        asked.append(path)
        content = read(path)
        if len(asked) <= times:
            raise STALE
        return content

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    return asked


def test_a_lease_that_beats_while_another_machine_reads_it_is_still_its_holders(tmp_path, monkeypatch):
    lease = Lease(tmp_path / "lease.json", "run one")
    assert lease.take()
    stale_at_first(monkeypatch, times=files.OPENINGS + 2)
    assert not Lease(lease.path, "run two").take()
    assert lease.beat()
    assert lease.release()


def test_shards_that_the_pack_names_are_used_whether_or_not_their_folder_lists_them(tmp_path, monkeypatch):
    make(pack_plan(), PackStore(tmp_path, "val"))
    before, listed = hashes(tmp_path), Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: [] if path.name == "val_shards" else listed(path, pattern))
    work, store = Work(), PackStore(tmp_path, "val")
    plan = pack_plan(work=work)
    assert store.finished(plan, store.records(plan.items))
    make(plan, store)
    assert work.made == []
    assert hashes(tmp_path) == before


def test_a_pack_that_is_replaced_elsewhere_while_it_is_read_says_so(tmp_path):
    make(pack_plan(), PackStore(tmp_path, "val"))
    opened = OpenPack(Pack.open(tmp_path / "val.h5"))

    class Gone:
        def __getitem__(self, at):
            raise OSError("Can't read data (file read failed: errno = 116, error message = 'Stale file handle')")

    opened._datasets["mask"] = Gone()
    with opened.file, pytest.raises(PackRefused, match=r"val\.h5 was replaced elsewhere while it was read\. Run again"):
        opened.masks(0)


def test_a_folder_that_lists_a_name_twice_holds_one_sample_of_it(tmp_path, monkeypatch):
    add_sample(tmp_path, "discs/00", 1)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: [*listed(folder)] * 2)
    (found,) = list_samples(tmp_path / "images", tmp_path / "masks")
    assert (found.sample_id, found.reason) == ("discs/00", None)


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_file_system_that_fails_ends_the_scan_and_no_sample_passes_for_gone(tmp_path, monkeypatch, number):
    project = SmallProject.new(tmp_path, classes={"discs": 6, "boxes": 6}).use(monkeypatch)
    assert project.materialise("all_samples").success
    before, listed = hashes(project.root), Path.iterdir

    def iterdir(folder):
        if folder.name == "boxes":
            raise OSError(number, os.strerror(number))
        return listed(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", iterdir)
        with pytest.raises(ListingFailed, match=r"boxes could not be listed .* nothing was scanned.*then scan again"):
            list_samples(project.folder / "images", project.folder / "masks")
        assert not project.materialise("all_samples").success
    assert hashes(project.root) == before
    assert project.refresh(assets=("all_samples",)) == []
