"""What SCALE.md says is what was simulated, and what is simulated is what the platform does."""

import json
import resource
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from sam_laplace_assets.reporting import LoggedProgress
from sam_laplace_assets.resources.tracking import TrackedRun
from sam_laplace_assets.storage import pack
from sam_laplace_assets.storage.garbage import garbage
from sam_laplace_assets.storage.pack import Pack, PackRefused, PackStore
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.rows import OpenPack, StreamedRows
from sam_laplace_assets.storage.sam import SamCache
from sam_laplace_assets_tests.benchmarks import scale, simulation
from sam_laplace_assets_tests.benchmarks.preparing import SPLITS
from sam_laplace_assets_tests.benchmarks.scale import Line, Measured, duration, short, size
from sam_laplace_assets_tests.benchmarks.simulated import ARRAY_BYTES, draw_samples
from sam_laplace_assets_tests.benchmarks.simulation import ASSETS, count, keep, make
from sam_laplace_assets_tests.small_project import SmallProject, hashes
from sam_laplace_assets_tests.storage.fakes import make as make_plan
from sam_laplace_assets_tests.storage.fakes import pack_plan

SAMPLES, SETS = 100, 2
SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A simulated project, and how much of each asset was made."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        project = SmallProject.new(tmp_path_factory.mktemp("simulated"), classes={}).use(monkeypatch)
        project.change(prompt_generation={"max_pairs": 10})
        draw_samples(project.folder, SAMPLES)
        return project, {asset: make(asset, fake=True) for asset in ASSETS}


def test_each_sample_goes_through_all_stages(simulated):
    project, made = simulated
    assert made == {"all_samples": SAMPLES, "manifest": SAMPLES, "prompt_sets": SAMPLES, "sam_cache": SAMPLES * SETS,
                    "training_index": 3, "hdf5_pack": SAMPLES}  # fmt: skip
    packs = [Pack.open(project.paths.pack(split)) for split in SPLITS]
    assert sum(len(one.safe_ids) for one in packs) == SAMPLES
    assert sum(map(len, packs)) == SAMPLES * SETS


def test_what_was_simulated_is_whole_to_the_platform_without_any_fake(simulated, monkeypatch):
    project, _ = simulated
    project.use(monkeypatch)
    before = hashes(project.root / "manifests")
    assert {asset: make(asset, fake=False) for asset in ASSETS} == dict.fromkeys(ASSETS, 0)
    assert hashes(project.root / "manifests") == before
    assert garbage(Project.of(project.settings), splits=SPLITS, keep_runs=1) == []


def test_arrays_have_their_full_size_and_take_no_room(simulated):
    project, _ = simulated
    cache = SamCache.open(project.paths.sam_cache("train"), split="train")
    arrays = [cache.folder / one.path(name) for key in cache.records for one in cache.sets(key) for name in one.sha256]
    assert len(arrays) == len(cache.records) * SETS * 3
    assert {path.stat().st_size for path in arrays} == {ARRAY_BYTES}
    assert {path.stat().st_blocks for path in arrays} == {0}
    for shard in (project.root / "training_data").rglob("*_shards/*.h5"):
        assert shard.stat().st_size > 10 * shard.stat().st_blocks * 512


def test_a_pack_of_more_shards_than_files_may_be_open_is_read_to_the_end(many_shards):
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds() + len(many_shards) // 2, HARD))
    rows = StreamedRows(many_shards)
    assert all(rows.read(np.array([row]))[0].isfinite().all() for row in range(len(many_shards)))
    assert psutil.Process().num_fds() > len(many_shards)


def test_a_machine_that_allows_fewer_open_files_than_a_pack_has_shards_is_named(many_shards, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 128))
    with pytest.raises(PackRefused, match=r"val\.h5 has 60 shards, .* no more than 128 files open here\. Raise that"):
        OpenPack(many_shards)


@pytest.fixture
def many_shards(tmp_path, monkeypatch):
    """A pack with a shard for each of its 60 rows."""
    monkeypatch.setattr(pack, "ROWS_PER_SHARD", 1)
    make_plan(pack_plan([f"s{number:02d}1" for number in range(60)]), PackStore(tmp_path, "val"))
    yield Pack.open(tmp_path / "val.h5")
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, HARD))


@pytest.mark.parametrize(("images", "lines"), [(250, 3), (20_000, 100), (1_000_000, 100)])
def test_a_stage_tells_no_more_lines_of_more_images(images, lines):
    told = []
    progress = LoggedProgress(SimpleNamespace(info=told.append), "manifest[train]", TrackedRun())
    for done in range(images + 1):
        progress(done, 0, images, "samples")
    assert lines <= len(told) <= lines + 5  # and one every five seconds
    assert told[-1].startswith(f"manifest[train]: {images}/{images} samples")


def test_files_folders_and_bytes_are_counted(tmp_path):
    for name, length in (("a/1", 10), ("a/2", 20), ("a/b/3", 5000)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * length)
    found = count(tmp_path)
    everything = [tmp_path, *tmp_path.rglob("*")]
    assert found == {"files": 3, "folders": 3, "bytes": 5030, "most_in_a_folder": 3,
                     "allocated": sum(path.stat().st_blocks * 512 for path in everything)}  # fmt: skip


def test_a_simulation_takes_the_place_of_the_one_of_its_size_and_leaves_the_rest(tmp_path):
    kept = tmp_path / "simulation.json"
    kept.write_text(json.dumps({"runs": [], "units": {"cached_set_s": 1.0}}))
    for samples, sets, seconds in ((200, 1, 3), (20, 1, 1), (20, 10, 2), (200, 1, 4)):
        keep({"samples": samples, "sets": sets, "synced": False, "seconds": seconds}, kept=kept)
    found = json.loads(kept.read_text())
    assert [(run["samples"], run["sets"], run["seconds"]) for run in found["runs"]] == [
        (20, 1, 1),
        (20, 10, 2),
        (200, 1, 4),
    ]
    assert found["units"] == {"cached_set_s": 1.0}


@pytest.mark.parametrize("line", [Line(0, 3), Line(7, 2, 0.5), Line(100, 0, 1)])
def test_a_line_through_what_grows_evenly_is_that_growth(line):
    runs = [{"samples": samples, "sets": sets} for samples, sets in ((100, 1), (5000, 1), (100, 10))]
    measured = Measured(*runs, units={}, packed_row=0)
    found = measured.line(lambda run: line.of(run["samples"], run["sets"]))
    assert (found.fixed, found.image, found.more) == pytest.approx((line.fixed, line.image, line.more))
    assert found.of(12_345) == pytest.approx(line.of(12_345, scale.SETS_AN_IMAGE))


def test_an_image_has_a_file_of_prompts_and_four_for_each_prompt_set():
    files, folders = (Measured.read().on_disk(what, "prompt_sets", "sam_cache") for what in ("files", "folders"))
    assert (files.image, files.more) == pytest.approx((1 + 4, 4))
    assert (folders.image, folders.more) == pytest.approx((1 + 1, 1))


def test_numbers_are_said_with_two_figures_at_least():
    assert [duration(value) for value in (0.34, 3.44, 119, 130, 7300, 4e6)] == [
        "0.34 s", "3.4 s", "119 s", "2.2 min", "2 h", "1,111 h"]  # fmt: skip
    assert [size(value) for value in (1500, 2.5e6, 4.71e11, 3.5e12)] == ["1.5 kB", "2.5 MB", "471 GB", "3.5 TB"]
    assert [short(value) for value in (36_210, 4_520_000)] == ["36,200", "4.5 million"]


def test_the_page_shows_what_the_kept_figures_come_to():
    text = scale.PAGE.read_text()
    assert scale.page(text, Measured.read()) == text
    assert all(text.count(f"<!-- {name} -->") == text.count(f"<!-- end of {name} -->") == 1 for name in scale.TABLES)


def test_a_second_look_at_a_simulation_made_nothing():
    runs = json.loads(simulation.KEPT.read_text())["runs"]
    again = [stage["made"] for run in runs for stage in run["stages"] if stage["when"] == simulation.AGAIN]
    assert again == [0] * len(ASSETS) * len(runs)
    assert max(run["samples"] for run in runs) >= 200_000


def test_a_stage_says_what_it_cost(tmp_path, monkeypatch):
    asked = SimpleNamespace(samples=3, sets=1, synced=False, folder=tmp_path, stage=(simulation.FIRST, "samples"))
    monkeypatch.setenv("SAM_LAPLACE_CONFIG", "")
    told = simulation._carry_out_stage(asked)
    assert told.keys() == {"seconds", "cpu_seconds", "peak_MiB", "made"}
    assert len(list((tmp_path / "images").rglob("*.png"))) == 3
