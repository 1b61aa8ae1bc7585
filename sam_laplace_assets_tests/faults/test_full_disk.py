"""A disk that is full at any stage costs nothing that was made, is told in words, and the next run goes on."""

import shutil

import pytest

from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.faults.mounts import BALLAST, small_disk
from sam_laplace_assets_tests.small_project import SmallProject, draw_plainly, failure, hashes

TINY = {"classes": {"discs": 4, "boxes": 4}}
CHANGES = {"prompt_generation": {f"num_promptsets_{role}": 1 for role in ("train", "val", "test")},
           "training": {"num_epochs": 1}}  # fmt: skip
PREPARED = ("manifests/", "prompt_sets/", "sam_precompute/", "training_data/")
REWRITTEN = (".ledger.", ".parquet", "checkpoints.json", "leases/", BALLAST, "champion", "current-", "run_")
"""Files that completing a partition writes again, with equal bytes."""
UNLIKE = tuple(part for part in REWRITTEN if part != ".parquet")
"""Files whose bytes tell times or places too."""
PACKS = tuple(f"/{split}.h5" for split in ("train", "val", "test"))
"""Whose bytes HDF5 does not repeat; their data versions say that they are equal."""
STAGES = [
    ("all_samples", None), *((asset, split) for split in ("train", "val", "test") for asset in
                             ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack")),
    ("sanity_panels", "train"), ("validation_pack", None), ("head_checkpoint", "train"), ("laplace_posterior", "train"),
    ("posterior_sweep", "train"), ("champion", None), ("evaluation", "test"), ("prompt_scores", "test"),
    ("active_prompting", "test"),
]  # fmt: skip
ROOMS = [0, *(1 << power for power in range(12, 25))]
SOME_ROOM = {("all_samples", None): 8192, ("prompt_sets", "train"): 12288, ("sam_cache", "train"): 1 << 18,
             ("hdf5_pack", "train"): 1 << 21, ("head_checkpoint", "train"): 8192,
             ("laplace_posterior", "train"): 8192, ("champion", None): 4096}  # fmt: skip


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A tiny project that was made on a disk with room."""
    project = SmallProject.new(tmp_path_factory.mktemp("reference"), **TINY, **CHANGES)
    with pytest.MonkeyPatch.context() as patch:
        draw_plainly(patch)
        project.use(patch)
        for asset, split in STAGES:
            result = project.materialise(asset, split=split)
            assert result.success, failure(result)
    return project


@pytest.fixture
def begun(reference, tmp_path, monkeypatch, plain_pictures):
    """The same project before anything was made; its project root is an empty folder."""
    project = reference.copy(tmp_path).use(monkeypatch)
    shutil.rmtree(project.root)
    project.root.mkdir()
    return project


def kept_files(root):
    """Files that a later stage has no reason to write again -> what they hold and which file they are."""
    there = (path for path in root.rglob("*") if path.is_file() and BALLAST not in path.parts)
    names = {path.relative_to(root).as_posix(): path.stat() for path in there}
    return {name: (state.st_ino, state.st_mtime_ns, state.st_size) for name, state in names.items()
            if not any(part in name for part in REWRITTEN)}  # fmt: skip


def leftovers(root):
    return [path.name for path in root.rglob(".tmp-*")]


def require_whole(root, of_reference):
    """What was prepared is, file by file, what it should be: none is half."""
    for name, sha256 in hashes(root).items():
        if name.startswith(PREPARED) and not any(part in name for part in (*UNLIKE, *PACKS)):
            assert sha256 == of_reference[name], name


def require_words(told, root):
    assert "cannot be written: its disk is full" in told, told
    assert str(root) in told
    assert "are free" in told
    assert "Make room there" in told
    assert "what is finished is kept" in told


def push_through(project, disk, of_reference, asset, split, *, rooms):
    """Make a partition with ever more room until it succeeds; how often the disk was full."""
    full = 0
    for room in rooms:
        disk.fill(leave=room)
        before = kept_files(project.root)
        result = project.materialise(asset, split=split)
        if result.success:
            break
        full += 1
        require_words(failure(result), project.root)
        assert before.items() <= kept_files(project.root).items()
        assert not leftovers(project.root)
        require_whole(project.root, of_reference)
    before = kept_files(project.root)
    disk.empty()
    result = project.materialise(asset, split=split)
    assert result.success, failure(result)
    assert before.items() <= kept_files(project.root).items()
    require_whole(project.root, of_reference)
    return full


def walk(project, reference, disk, rooms_of):
    """All stages, each with the rooms that it is to be tried in; how often the disk was full."""
    of_reference, full = hashes(reference.root), {}
    for asset, split in STAGES:
        full[asset] = full.get(asset, 0) + push_through(project, disk, of_reference, asset, split,
                                                        rooms=rooms_of(asset, split))  # fmt: skip
    assert {name for name in hashes(project.root) if name.startswith(PREPARED)} == {
        name for name in of_reference if name.startswith(PREPARED)
    }
    for asset, split in STAGES:
        assert project.version(asset, split) == reference.version(asset, split), asset
    return full


def test_a_disk_that_is_full_at_a_stage_costs_nothing_and_the_next_run_goes_on(begun, reference):
    with small_disk(begun.root) as disk:
        full = walk(begun, reference, disk,
                    lambda asset, split: [SOME_ROOM[asset, split]] if (asset, split) in SOME_ROOM else [])  # fmt: skip
    assert all(full[asset] for asset, _ in SOME_ROOM), full


@pytest.mark.faults
def test_a_disk_that_is_full_at_any_point_of_any_stage_costs_nothing(begun, reference):
    with small_disk(begun.root) as disk:
        full = walk(begun, reference, disk, lambda asset, split: ROOMS if split in (None, "train", "test") else [])
    assert all(full.values()), full
    tried = sum(full.values())
    keep("full disk, at any stage", group="disk", tried=tried, survived=tried,
         gets="told what to free; nothing damaged; the next run goes on, finished items as they were")  # fmt: skip


def test_a_write_that_the_disk_refused_gives_back_what_it_took(begun, reference):
    with small_disk(begun.root) as disk:
        for asset, split in STAGES[:5]:
            assert begun.materialise(asset, split=split).success
        disk.fill(leave=1 << 21)
        free = disk.free
        for _ in range(3):
            assert not begun.materialise("hdf5_pack", split="train").success
        assert disk.free >= free - (1 << 14)
        disk.empty()
        assert begun.materialise("hdf5_pack", split="train").success


def test_a_disk_without_places_for_files_is_told_as_such_and_costs_nothing(begun, reference):
    of_reference = hashes(reference.root)
    with small_disk(begun.root, places=400) as disk:
        for asset, split in STAGES[:3]:
            assert begun.materialise(asset, split=split).success
        for leave in (0, 2, 9):
            disk.fill_places(leave=leave)
            before = kept_files(begun.root)
            result = begun.materialise("sam_cache", split="train")
            assert not result.success
            require_words(failure(result), begun.root)
            assert "places for files are free" in failure(result)
            assert before.items() <= kept_files(begun.root).items()
            require_whole(begun.root, of_reference)
        disk.empty()
        before = kept_files(begun.root)
        assert begun.materialise("sam_cache", split="train").success
        assert before.items() <= kept_files(begun.root).items()
    keep("no inodes left", group="disk", tried=3, survived=3, gets="told so; the next run goes on")
