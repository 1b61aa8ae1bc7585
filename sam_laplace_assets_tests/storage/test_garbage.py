"""What nothing points to any more in a real project, and that nothing else goes with it."""

import json
import os
import shutil
import time

import numpy as np
import pytest

from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.champion import read_champion
from sam_laplace_assets.storage.garbage import CONDEMNED, garbage, remove, sign_again, unknown
from sam_laplace_assets.storage.in_use import UseUnclear
from sam_laplace_assets.storage.index import read_index
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.posterior import PosteriorRun
from sam_laplace_assets.storage.rows import load_rows
from sam_laplace_assets.storage.sam import SamStore, read_array
from sam_laplace_assets_tests.small_project import (
    BASE,
    SPLIT_ASSETS,
    SmallProject,
    copied,
    count_calls,
    hashes,
    with_fewer_sets,
)  # fmt: skip
from sam_laplace_assets_tests.storage.fakes import cut, unsealed

DAY = 25 * 3600


def found_in(project, *, splits=BASE, keep_runs=5):
    return garbage(project.paths, splits=splits, keep_runs=keep_runs)


def names(project, found):
    return {one.path.relative_to(project.root).as_posix() for one in found}


def garbage_names(project, **how):
    return names(project, found_in(project, **how))


def unknown_names(project):
    return {path.relative_to(project.root).as_posix() for path in unknown(project.paths, splits=BASE, keep_runs=5)}


def clear(project, **how):
    """Remove all garbage; what is gone, by the names of the files."""
    before = hashes(project.root)
    for one in found_in(project, **how):
        remove(one)
    for split in BASE:
        sign_again(project.paths.sam_cache(split))
    after = hashes(project.root)
    ledgers = {name for name in after if ".ledger." in name}
    assert {name: said for name, said in after.items() if name not in ledgers}.items() <= before.items()
    return before.keys() - after.keys()


def assert_whole(project):
    """Whatever something points to opens, and nothing is left to do."""
    for split in BASE:
        load_rows(Pack.open(project.paths.pack(split)))
        frame, _ = read_index(project.paths.training_index(split), "parquet", split=split)
        for row in frame.to_dict("records"):
            for array in ("logits_256", "pos_map", "neg_map"):
                read_array(project.root / row[f"{array}_path"], sha256=row[f"{array}_sha256"])
    PosteriorRun.open(project.paths.posteriors / f"run_{read_champion(project.paths.posteriors).run_id}").state()
    assert project.refresh() == []


def valid(project, split):
    return [row for row in read_rows(project.paths.manifests, split) if row["valid"]]


def take_away(project, sample):
    for kind in ("image", "mask"):
        (project.folder / f"{kind}s" / sample[f"{kind}_path"]).unlink()


def lose_a_sample(project, split):
    """Take a sample's files away, and make its split anew; the sample."""
    gone = valid(project, split)[0]
    take_away(project, gone)
    project.refresh(split, assets=["all_samples", *SPLIT_ASSETS])
    return gone


def age(*paths):
    """Have these files and folders, and all that is below them, last written more than a day ago."""
    long_ago = time.time() - DAY
    for path in (one for top in paths for one in (*(top.rglob("*") if top.is_dir() else ()), top)):
        os.utime(path, (long_ago, long_ago))


def test_a_project_that_is_made_has_no_garbage(read_only):
    assert found_in(read_only, keep_runs=0) == []
    assert unknown_names(read_only) == set()


def test_a_project_of_which_nothing_is_made_has_none(new_project):
    assert found_in(new_project) == []


def test_all_that_was_made_of_a_sample_that_is_gone_is_garbage(project):
    gone = valid(project, "train")[0]
    take_away(project, gone)
    assert found_in(project) == []  # the manifest still names it
    project.refresh()
    found = found_in(project)
    panels = {name for name in names(project, found) if name.startswith("reports/debug_panels/train/")}
    assert all(gone["safe_id"] in name for name in panels)
    items = {f"prompt_sets/train/{gone['safe_id']}.json", f"sam_precompute/train/{gone['safe_id']}"}
    assert names(project, found) == items | panels
    folder = project.paths.sam_cache("train") / gone["safe_id"]
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert {one.path: one.bytes for one in found}[folder] == held
    assert {one.why for one in found} <= {"its sample is no longer in train", "it shows what is gone"}
    assert all(gone["safe_id"] in name for name in clear(project))
    assert found_in(project) == []
    assert_whole(project)


def test_what_reports_keep_of_a_sample_that_is_gone_is_garbage_and_foreign_files_are_not(project):
    gone = valid(project, "test")[0]
    take_away(project, gone)
    project.refresh()
    folder = project.paths.report("prompt_scores", "test") / "samples"
    foreign = folder / "notes.json"
    foreign.write_text("{}")
    kept = f"reports/prompt_scores/test/samples/{gone['safe_id']}.json"
    assert kept in names(project, found_in(project))
    clear(project)
    assert not (project.root / kept).exists()
    assert foreign.exists()


def test_a_sample_that_was_refused_since_counts_as_gone(project):
    gone = valid(project, "test")[0]
    (project.folder / "masks" / gone["mask_path"]).unlink()
    project.refresh(assets=["all_samples", "manifest", "prompt_sets", "sam_cache", "training_index"])
    assert f"sam_precompute/test/{gone['safe_id']}" in garbage_names(project)


def test_what_a_ledger_or_the_index_still_names_is_in_use_though_the_manifest_does_not(project):
    gone = valid(project, "train")[0]
    take_away(project, gone)
    project.refresh(assets=["all_samples", "manifest"])
    assert found_in(project) == []
    project.refresh(assets=["prompt_sets", "sam_cache"])
    assert found_in(project) == []


def test_a_sample_that_moved_to_another_split_leaves_garbage_in_the_one_before(project):
    moved = valid(project, "train")[0]
    lines = [f"{row['sample_id']},{'val' if row['sample_id'] == moved['sample_id'] else split}"
             for split in BASE for row in valid(project, split)]  # fmt: skip
    (project.folder / "official.csv").write_text("\n".join(["sample_id,split", *lines]))
    project.change(data={"splits_file": "official.csv"})
    project.refresh()
    assert moved["safe_id"] in {row["safe_id"] for row in valid(project, "val")}
    found = garbage_names(project)
    assert {f"prompt_sets/train/{moved['safe_id']}.json", f"sam_precompute/train/{moved['safe_id']}"} <= found
    assert not any(moved["safe_id"] in name and "/val/" in name for name in found)
    clear(project)
    assert (project.paths.sam_cache("val") / moved["safe_id"]).is_dir()
    assert_whole(project)


@pytest.fixture(scope="module")
def once_more_sets(made_project, tmp_path_factory):
    """A project whose split `test` was once given three prompt sets a sample, and is back at two."""
    return with_fewer_sets(made_project, tmp_path_factory.mktemp("littered"), once=3)


@pytest.fixture
def more_sets(once_more_sets, tmp_path, monkeypatch, plain_pictures):
    """A copy of it, its settings in force."""
    return once_more_sets.copy(tmp_path / "littered").use(monkeypatch)


def test_prompt_sets_that_are_no_longer_wanted_are_garbage(more_sets):
    keys = [row["safe_id"] for row in valid(more_sets, "test")]
    sets = {f"sam_precompute/test/{key}/promptset_0002" for key in keys}
    assert {name for name in garbage_names(more_sets) if name.startswith("sam_")} == sets
    clear(more_sets)
    assert found_in(more_sets) == []
    assert_whole(more_sets)


def test_the_samples_that_lost_prompt_sets_are_not_read_at_every_look_from_then_on(more_sets, monkeypatch):
    for one in found_in(more_sets):
        remove(one)
    calls = count_calls(monkeypatch, SamStore, "read_record")
    assert more_sets.refresh() == []
    assert calls["read_record"] > 0
    for _ in range(2):
        sign_again(more_sets.paths.sam_cache("test"))
        calls.clear()
    assert more_sets.refresh() == []
    assert calls["read_record"] == 0


def test_a_sample_that_is_damaged_is_not_signed_as_whole(more_sets):
    for one in found_in(more_sets):
        remove(one)
    damaged = next(more_sets.paths.sam_cache("test").glob("*/promptset_0000/logits_256.npy"))
    cut(damaged)
    sign_again(more_sets.paths.sam_cache("test"))
    assert more_sets.refresh(assets=["sam_cache"]) == ["sam_cache[test]"]


def test_a_trial_does_not_make_the_rest_look_like_garbage(project):
    project.change(prompt_generation={"num_promptsets_test": 1})
    project.materialise("prompt_sets", split="test", limit=1)
    project.materialise("sam_cache", split="test", limit=1)
    project.materialise("training_index", split="test")
    project.materialise("hdf5_pack", split="test")
    assert not Pack.open(project.paths.pack("test")).complete
    assert len(Pack.open(project.paths.pack("test")).safe_ids) == 1
    assert found_in(project) == []


def test_a_split_without_a_manifest_is_left_alone(project):
    lose_a_sample(project, "test")
    age(*project.paths.packs.glob("test_shards/*"))
    assert len(found_in(project)) > 1
    project.paths.manifests.table("test").unlink()
    assert found_in(project) == []


def test_a_split_that_is_not_asked_for_is_left_alone(project):
    lose_a_sample(project, "test")
    assert found_in(project, splits=("train", "val")) == []


def test_shards_that_the_pack_does_not_name_are_garbage(project):
    (before,) = project.paths.packs.glob("test_shards/*.h5")
    project.change(prompt_generation={"num_promptsets_test": 1})
    project.refresh()
    shard = before.relative_to(project.root).as_posix()
    assert shard in garbage_names(project)
    assert shard in clear(project)
    assert_whole(project)


def test_a_shard_that_an_interrupted_run_may_go_on_from_stays_for_a_day(project):
    written = project.paths.packs / "test_shards" / f"{'a' * 24}.h5"
    written.write_bytes(b"rows")
    soon = time.time() + 60
    os.utime(written, (soon, soon))
    assert found_in(project) == []
    age(written, project.paths.pack("test"))
    assert names(project, found_in(project)) == {written.relative_to(project.root).as_posix()}


def test_shards_without_a_pack_stay(project):
    project.paths.pack("test").unlink()
    age(*project.paths.packs.glob("test_shards/*"))
    assert found_in(project) == []


@pytest.fixture(scope="module")
def three_heads(made_project, tmp_path_factory):
    """A project with three heads and posteriors, seeds 0, 1 and 2; the last is current."""
    with copied(made_project, tmp_path_factory.mktemp("three")) as project:
        for seed in (1, 2):
            project.change(training={"seed": seed})
            project.refresh()
    return project


@pytest.fixture
def runs(three_heads, tmp_path, monkeypatch, plain_pictures):
    """A copy of it; run ids of posteriors and heads, oldest first; the first posterior holds the title."""
    project = SmallProject(shutil.copytree(three_heads.folder, tmp_path / "copy")).use(monkeypatch)
    completed = {"posteriors": "posterior_meta.json", "checkpoints": "epoch_state.json"}
    folders = {kind: getattr(project.paths, kind) for kind in completed}
    ordered = {kind: sorted((path.parent for path in folders[kind].glob(f"run_*/{name}")),
                            key=lambda folder, name=name: (folder / name).stat().st_mtime_ns)
               for kind, name in completed.items()}  # fmt: skip
    give_title(project, run_id(ordered["posteriors"][0]))
    return project, ordered["posteriors"], ordered["checkpoints"]


def run_id(folder):
    return folder.name.removeprefix("run_")


def give_title(project, *holders):
    """Have the history say that these held the title, one after the other."""
    path = project.paths.posteriors / "champion_history.jsonl"
    one = unsealed(path.read_text().splitlines()[-1])
    path.write_text("".join(json.dumps({**one, "run_id": holder}) + "\n" for holder in holders))


def test_runs_are_garbage_that_are_neither_in_use_nor_among_the_newest(runs):
    project, posteriors, heads = runs
    assert len(posteriors) == len(heads) == 3
    assert found_in(project, keep_runs=3) == []
    assert found_in(project, keep_runs=2) == []  # the oldest holds the title
    found = found_in(project, keep_runs=1)
    assert [one.path for one in found] == [posteriors[1], heads[1]]  # so that no posterior outlives its head
    assert [one.kind for one in found] == ["posteriors", "heads"]
    assert found_in(project, keep_runs=0) == found
    held = {path.relative_to(project.root).as_posix() for one in found for path in one.path.iterdir()}
    assert clear(project, keep_runs=0) == held
    assert found_in(project, keep_runs=0) == []
    for folder in (posteriors[0], posteriors[2]):
        PosteriorRun.open(folder).state()


def test_the_newest_are_those_that_were_finished_last(runs):
    project, posteriors, heads = runs
    give_title(project, run_id(posteriors[2]))
    assert [one.path for one in found_in(project, keep_runs=2)] == [posteriors[0], heads[0]]
    age(posteriors[1], heads[1])
    assert [one.path for one in found_in(project, keep_runs=2)] == [posteriors[1], heads[1]]


def test_the_holder_that_a_rollback_would_return_to_stays(runs):
    project, posteriors, heads = runs
    give_title(project, run_id(posteriors[0]), run_id(posteriors[1]), run_id(posteriors[2]), run_id(posteriors[2]))
    assert [one.path for one in found_in(project, keep_runs=0)] == [posteriors[0], heads[0]]


def test_a_holder_from_long_ago_that_is_not_there_any_more_does_not_matter(runs):
    project, posteriors, heads = runs
    give_title(project, "train-000000000000", run_id(posteriors[2]))
    assert [one.path for one in found_in(project, keep_runs=0)] == [*sorted(posteriors[:2]), *sorted(heads[:2])]


def test_the_head_of_a_posterior_that_stays_is_kept(runs):
    project, posteriors, heads = runs
    age(heads[0])
    assert heads[0] not in [one.path for one in found_in(project, keep_runs=1)]
    assert PosteriorRun.open(posteriors[0]).meta["head"]["run_id"] == run_id(heads[0])


def test_after_it_a_run_has_nothing_to_do(runs):
    project, *_ = runs
    project.refresh()  # the title that the test gave away is decided on anew, if need be
    clear(project, keep_runs=0)
    assert_whole(project)
    assert found_in(project, keep_runs=0) == []


def test_each_training_split_has_its_newest(runs):
    project, posteriors, heads = runs
    give_title(project, run_id(posteriors[2]))
    for folder, pointer in ((posteriors[0], project.paths.posteriors), (heads[0], project.paths.checkpoints)):
        other = folder.with_name(folder.name.replace("run_train-", "run_train-caves-"))
        folder.rename(other)
        current = unsealed((pointer / "current-train.json").read_text())
        files.write_json(pointer / "current-train-caves.json", {**current, "run_id": run_id(other)})
    assert [one.path for one in found_in(project, keep_runs=1)] == [posteriors[1], heads[1]]
    assert found_in(project, keep_runs=2) == []


def unfinish(head):
    state = unsealed((head / "epoch_state.json").read_text())
    files.write_json(head / "epoch_state.json", {**state, "finished": False})


def test_a_half_done_run_is_garbage_once_nothing_was_written_in_it_for_a_day(runs):
    project, posteriors, heads = runs
    clear(project, keep_runs=0)
    half = [folder.with_name("run_train-halfdone") for folder in (posteriors[0], heads[0])]
    shutil.copytree(posteriors[0], half[0])
    (half[0] / "posterior_meta.json").unlink()
    shutil.copytree(heads[0], half[1])
    unfinish(half[1])
    (half[1] / "last.pt").rename(half[1] / "last.pt.next")
    assert found_in(project, keep_runs=0) == []
    age(*half)
    assert [one.path for one in found_in(project, keep_runs=9)] == half
    (half[1] / "best.pt").touch()
    assert [one.path for one in found_in(project, keep_runs=9)] == half[:1]


def test_a_run_with_a_foreign_file_or_name_is_left_alone(runs):
    project, posteriors, heads = runs
    (posteriors[1] / "notes.md").write_text("mine")
    shutil.copytree(heads[1], heads[1].with_name("run_mine"))
    (project.paths.checkpoints / "notes.md").write_text("mine")
    assert [one.path for one in found_in(project, keep_runs=0)] == [heads[1]]
    assert unknown_names(project) == {"checkpoints/no_image/run_mine", "checkpoints/no_image/notes.md"}


@pytest.mark.parametrize("kind", ["posteriors", "checkpoints"])
@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("{", ValueError, r"current-train\.json is not JSON"),
        ("{}", ValueError, r"current-train\.json is damaged: it says no format version.*Delete it"),
        ('{"version": 1, "run_id": "train-x", "overrides": {}}', UseUnclear,
         r"current-train\.json names run_train-x, which is not there or not finished.*materialise \w+ again"),
        ('{"version": 99}', files.NewerFormat, r"current-train\.json has format version 99.*Upgrade"),
    ],
)  # fmt: skip
def test_a_damaged_pointer_is_refused(runs, kind, said, error, told):
    project, *_ = runs
    (getattr(project.paths, kind) / "current-train.json").write_text(said)
    with pytest.raises(error, match=told):
        found_in(project)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{\n", r"champion_history\.jsonl holds a line that is no decision"),
        ("{}\n", r"champion_history\.jsonl holds a line that is no decision"),
        ('{"version": 1}\n', r"champion_history\.jsonl does not say what it should"),
    ],
)
def test_a_damaged_history_is_refused(runs, said, told):
    project, *_ = runs
    with (project.paths.posteriors / "champion_history.jsonl").open("a") as history:
        history.write(said)
    with pytest.raises(ValueError, match=told):
        found_in(project)


def test_a_title_of_a_run_that_is_not_there_is_refused(runs):
    project, posteriors, _ = runs
    shutil.rmtree(posteriors[0])
    with pytest.raises(UseUnclear, match=rf"champion_history\.jsonl names {posteriors[0].name}, which is not there"):
        found_in(project)


def test_a_run_that_cannot_say_whether_it_is_finished_is_refused(runs):
    project, _, heads = runs
    (heads[1] / "epoch_state.json").write_text("{")
    with pytest.raises(ValueError, match=r"epoch_state\.json is not JSON"):
        found_in(project)
    (heads[1] / "epoch_state.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"epoch_state\.json is damaged: it says no format version"):
        found_in(project)


@pytest.mark.parametrize(
    "name",
    ["manifests/train.parquet", "prompt_sets/train.ledger.parquet", "sam_precompute/train.ledger.parquet",
     "training_data/no_image/train_index.parquet"],
)  # fmt: skip
def test_a_damaged_table_is_refused(project, name):
    cut(project.root / name)
    with pytest.raises(UseUnclear, match=rf"{name} is damaged: it cannot be told what is in use\. Delete it"):
        found_in(project)


def test_a_ledger_whose_rows_are_damaged_is_refused(project):
    path = project.root / "sam_precompute/train.ledger.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    with pytest.raises(UseUnclear, match=r"train\.ledger\.parquet is damaged"):
        found_in(project)


def test_a_damaged_pack_is_refused(project):
    cut(next(project.paths.packs.glob("test_shards/*.h5")))
    with pytest.raises(ValueError, match=r"test\.h5 needs .*materialise hdf5_pack again"):
        found_in(project)


def test_what_killed_writers_left_is_garbage_after_a_day(project):
    places = ("prompt_sets/train", "checkpoints/no_image/run_x", "manifests", "reports/other/deep", ".")
    left = [project.root / place / ".tmp-0123" for place in places]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    assert found_in(project) == []
    age(*left)
    found = found_in(project)
    assert {one.path for one in found} == set(left)
    assert {(one.kind, one.bytes) for one in found} == {("leftovers", 4)}
    clear(project)
    assert not any(path.exists() for path in left)
    assert found_in(project) == []


def test_what_a_killed_gc_left_is_garbage_at_once(project):
    left = project.paths.sam_cache("train") / f"{CONDEMNED}0123" / "promptset_0000"
    left.mkdir(parents=True)
    (left / "meta.json").write_text("{}")
    assert [one.path for one in found_in(project)] == [left.parent]
    assert clear(project) == {(left / "meta.json").relative_to(project.root).as_posix()}
    assert found_in(project) == []


def test_leftovers_in_what_is_garbage_anyway_are_not_counted_twice(more_sets):
    set_folder = next(more_sets.paths.sam_cache("test").glob("*/promptset_0002"))
    (set_folder / ".tmp-0123").write_bytes(b"half")
    age(set_folder)
    found = [one.path for one in found_in(more_sets)]
    assert set_folder in found
    assert set_folder / ".tmp-0123" not in found
    clear(more_sets)
    assert not set_folder.exists()


def test_what_others_keep_below_the_project_root_is_not_looked_at(project):
    for place in ("dagster_home/storage", "mlruns/0", "images/boxes", "elsewhere"):
        path = project.root / place / ".tmp-0123"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"theirs")
        age(path)
    assert found_in(project) == []


def test_links_are_not_followed(project, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    cache = project.paths.sam_cache("train")
    gone = lose_a_sample(project, "train")
    for source in (cache / gone["safe_id"], project.paths.prompt_sets("train") / f"{gone['safe_id']}.json"):
        source.rename(outside / source.name)
        source.symlink_to(outside / source.name)
    (cache / "gone__2").mkdir()
    (cache / "gone__2" / "promptset_0000").symlink_to(outside / gone["safe_id"] / "promptset_0000")
    (project.paths.packs / "train_shards" / f"{'b' * 24}.h5").symlink_to(outside / f"{gone['safe_id']}.json")
    (cache / ".tmp-link").symlink_to(outside)
    (project.paths.checkpoints / "run_train-link").symlink_to(outside)
    age(outside)
    before, there = hashes(outside), unknown_names(project)
    clear(project)
    assert hashes(outside) == before
    assert {f"sam_precompute/train/{gone['safe_id']}", "sam_precompute/train/gone__2/promptset_0000",
            f"prompt_sets/train/{gone['safe_id']}.json", "checkpoints/no_image/run_train-link",
            f"training_data/no_image/train_shards/{'b' * 24}.h5"} == there  # fmt: skip
    assert all((project.root / name).is_symlink() for name in there)
    assert (cache / ".tmp-link").is_symlink()


def test_a_cache_that_lies_elsewhere_by_a_link_is_left_alone(project, tmp_path_factory):
    cache, outside = project.paths.sam_cache("train"), tmp_path_factory.mktemp("outside") / "train"
    shutil.move(cache, outside)
    cache.symlink_to(outside)
    (outside / "gone__1").mkdir()
    assert found_in(project) == []
    assert unknown_names(project) == {"sam_precompute/train"}


def test_files_of_others_among_ours_are_left_alone(project):
    foreign = {
        "prompt_sets/train/notes.txt", "prompt_sets/train/mine.json", "prompt_sets/train/list.json",
        "prompt_sets/train/cut.json", "sam_precompute/train/notes.txt", "sam_precompute/train/mine/notes.txt",
        "reports/debug_panels/train/mine_0000.png", "reports/debug_panels/train/mine.png",
        "training_data/no_image/train_shards/mine.h5",
    }  # fmt: skip
    for name in foreign:
        path = project.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text({"mine.json": "{}", "list.json": "[]"}.get(path.name, "{"))
        age(path)
    assert found_in(project) == []
    assert unknown_names(project) == foreign


def test_a_foreign_file_in_a_sample_that_is_gone_stays_and_the_rest_goes(project):
    gone = lose_a_sample(project, "train")
    folder = project.paths.sam_cache("train") / gone["safe_id"]
    np.save(folder / "promptset_0001" / "mine.npy", np.zeros(2))
    (folder / "notes.txt").write_text("mine")
    clear(project)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"notes.txt", "promptset_0001/mine.npy", "promptset_0001/meta.json"} <= left
    assert not (folder / "promptset_0000").exists()
    assert found_in(project) == []
    assert unknown_names(project) == {f"sam_precompute/train/{gone['safe_id']}/{name}"
                                      for name in ("notes.txt", "promptset_0001")}  # fmt: skip


def test_what_another_one_removed_meanwhile_is_no_error(more_sets):
    for one in 2 * found_in(more_sets):
        remove(one)
    assert found_in(more_sets) == []


def test_a_title_whose_posterior_lost_its_head_names_the_file(runs):
    project, posteriors, _ = runs
    meta = unsealed((posteriors[0] / "posterior_meta.json").read_text())
    files.write_json(posteriors[0] / "posterior_meta.json", {**meta, "head": {}})
    with pytest.raises(UseUnclear, match=r"posterior_meta\.json does not say what it should"):
        found_in(project)
