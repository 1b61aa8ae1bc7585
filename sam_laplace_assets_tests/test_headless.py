"""The whole graph without a UI: what runs, in which order, and how it fails."""

import shutil

import numpy as np
import pytest
from dagster._core.storage.tags import TagType, get_tag_type
from PIL import Image

from sam_laplace_assets.definitions import defs
from sam_laplace_assets.freshness import Freshness
from sam_laplace_assets.headless import RunFailed, refresh, tell_wait
from sam_laplace_assets.jobs import OF_THE_CHAMPION
from sam_laplace_assets.launcher import PROCESS
from sam_laplace_assets.stages import stages
from sam_laplace_assets.storage.champion import read_champion
from sam_laplace_assets.storage.manifest import read_assignments, read_rows
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets_tests.small_project import BASE, SPLIT_ASSETS, add_sample, draw, hashes


def named_split(project, key, *, count=3, seed=500, image=None):
    for number in range(count):
        add_sample(project.folder / "splits" / key, f"caves/{number:02d}", seed + number, image=image)


def copy_sample(project, sample, sample_id):
    """Put a sample of the base roots into split test-caves as well."""
    for kind in ("image", "mask"):
        source = project.folder / f"{kind}s" / sample[f"{kind}_path"]
        target = project.folder / "splits" / "test-caves" / f"{kind}s" / f"{sample_id}{source.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def rows_of(project, name):
    return [row for row in read_rows(project.paths.manifests, name) if row["valid"]]


def registered(project):
    with project.instance() as instance:
        return {name: set(instance.get_dynamic_partitions(name)) for name in ("sam_split", "sam_training_split")}


def test_the_graph_is_made_from_all_samples_to_a_champion(read_only):
    assert len(rows_of(read_only, "all_samples")) == 16
    assert [len(rows_of(read_only, split)) for split in BASE] == [12, 2, 2]
    assert [len(Pack.open(read_only.paths.pack(split))) for split in BASE] == [24, 4, 4]
    champion = read_champion(read_only.paths.posteriors)
    assert champion.training_split == "train"
    assert (read_only.paths.posteriors / f"run_{champion.run_id}" / "laplace_state.pt").exists()
    assert len(read_only.versions()) == 25


def test_stages_go_from_the_scan_over_the_splits_to_the_title():
    order = [(stage.job, stage.partition) for stage in stages(["train", "val", "test", "train-x"])]
    assert order == [
        ("scan", ""),
        *(("prepare_split", split) for split in ("train", "val", "test", "train-x")),
        ("name_validation_pack", ""),
        ("train_and_fit", "train"),
        ("train_and_fit", "train-x"),
        ("choose_champion", ""),
        ("evaluate", "test"),
    ]


def test_a_test_split_alone_has_a_champion_put_to_use_on_it_once_there_is_one():
    assert [stage.job for stage in stages(["test-x"], scanned=True)] == ["prepare_split"]
    assert [stage.job for stage in stages(["test-x"], scanned=True, fitted=True)] == ["prepare_split", "evaluate"]


def test_experiments_and_uses_of_other_splits_are_made_when_they_are_asked_for():
    asked = ("evaluation", "active_prompting", "posterior_sweep")
    found = [(stage.job, stage.partition, stage.assets) for stage in stages(["train", "test"], asked=asked)]
    assert found[-5:] == [
        ("evaluate", "train", ("evaluation",)),
        ("evaluate", "test", ("evaluation", "prompt_scores")),
        ("prompt_actively", "train", ("active_prompting",)),
        ("prompt_actively", "test", ("active_prompting",)),
        ("sweep_posteriors", "train", ("posterior_sweep",)),
    ]


def test_the_settings_say_on_which_splits_the_champion_is_put_to_use():
    made = stages(["val", "test", "test-x"], scanned=True, fitted=True, used_on=["val"])
    assert [stage.partition for stage in made if stage.job == "evaluate"] == ["val"]


def test_a_stage_needs_what_it_reads_and_nothing_else():
    made = list(stages(["train", "val", "test"], asked=("posterior_sweep",)))
    by_name = {f"{stage.job} {stage.partition}".strip(): stage for stage in made}

    def needed(name):
        return {other for other, stage in by_name.items() if by_name[name].needs(stage) and other != name}

    packs, judge = {"prepare_split train", "prepare_split val"}, "name_validation_pack"
    assert needed("prepare_split test") == {"scan"}
    assert needed("train_and_fit train") == {"scan", *packs, judge}
    assert needed("choose_champion") == {"scan", "prepare_split val", judge}
    assert needed("evaluate test") == {"scan", "prepare_split val", "prepare_split test", judge, "choose_champion"}
    assert needed("sweep_posteriors train") == {"scan", *packs, judge, "train_and_fit train"}


def test_a_named_split_is_made_alone(project):
    named_split(project, "test-caves")
    (project.folder / "images" / "boxes" / "stray.png").write_bytes(b"not scanned for a named split")
    versions = project.versions()
    expected = (*SPLIT_ASSETS_IN_ORDER, *OF_THE_CHAMPION)
    assert project.refresh("test-caves") == [f"{asset}[test-caves]" for asset in expected]
    assert project.versions() == versions
    assert len(Pack.open(project.paths.pack("test-caves"))) == 6
    assert registered(project) == {"sam_split": {*BASE, "test-caves"}, "sam_training_split": {"train"}}


SPLIT_ASSETS_IN_ORDER = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels")
assert set(SPLIT_ASSETS_IN_ORDER) == set(SPLIT_ASSETS)


def test_one_split_of_a_new_project_does_not_ask_for_the_others(new_project):
    assert new_project.refresh("test") == ["all_samples", *(f"{asset}[test]" for asset in SPLIT_ASSETS_IN_ORDER)]


def test_a_training_split_gets_a_head_and_a_posterior_of_its_own(project):
    named_split(project, "train-caves")
    ran = project.refresh()
    assert ran[-3:] == ["head_checkpoint[train-caves]", "laplace_posterior[train-caves]", "champion"]
    assert "head_checkpoint[train]" not in ran
    assert registered(project)["sam_training_split"] == {"train", "train-caves"}
    assert {one["run_id"].rpartition("-")[0] for one in decisions(project)[-1]["candidates"]} == {
        "train",
        "train-caves",
    }
    assert project.refresh() == []


def decisions(project):
    from sam_laplace_assets.storage.champion import read_history

    return read_history(project.paths.posteriors)


def test_a_training_split_that_was_registered_and_never_made_does_not_stop_the_title(project):
    with project.instance() as instance:
        instance.add_dynamic_partitions("sam_training_split", ["train-later"])
    project.change(champion={"confidence": 0.5})
    assert project.refresh("val") == ["champion"]


def test_prompts_of_a_named_split_are_counted_by_its_role(project):
    project.change(prompt_generation={"num_promptsets_test": 1})
    named_split(project, "test-caves", count=2)
    project.refresh("test-caves", assets=["manifest", "prompt_sets"])
    assert project.metadata("prompt_sets", "test-caves")["prompt sets"] == 2


@pytest.mark.parametrize("key", ["../x", "trian", "a,b", "test-nowhere"])
def test_a_split_that_is_not_there_is_refused_before_anything_is_written(project, key):
    before, known = hashes(project.root), registered(project)
    with pytest.raises(ValueError, match=r"Known splits: train, val, test\.$"):
        project.refresh(key)
    assert hashes(project.root) == before
    assert registered(project) == known


def test_an_asset_that_is_not_there_is_refused_naming_those_that_are(project):
    with pytest.raises(ValueError, match=r"There is no asset sam_cahce. Known assets: all_samples, manifest"):
        project.refresh(assets=["sam_cahce"])


def test_only_the_assets_that_are_named_are_made(new_project):
    assert new_project.refresh("test", assets=["all_samples", "manifest"]) == ["all_samples", "manifest[test]"]


def test_each_run_is_announced_with_its_reason(project):
    project.change(prompt_generation={"num_promptsets_test": 1})
    told = []
    with project.instance() as instance:
        refresh(instance, tell=told.append)
    assert told == ["prompt_sets, sam_cache, training_index, hdf5_pack, sanity_panels of test: "
                    "2 samples stale", "evaluation, prompt_scores of test: 1 reports stale"]  # fmt: skip


def test_a_removed_sample_leaves_index_and_pack_and_returns_to_its_place(project):
    sample = rows_of(project, "train")[0]
    files = [project.folder / "images" / sample["image_path"], project.folder / "masks" / sample["mask_path"]]
    for path in files:
        path.rename(path.with_name("." + path.name))
    project.refresh("train", assets=["all_samples", *SPLIT_ASSETS])
    assert sample["sample_id"] not in {row["sample_id"] for row in rows_of(project, "train")}
    assert sample["safe_id"] not in Pack.open(project.paths.pack("train")).safe_ids
    assert project.metadata("training_index", "train")["rows"] == 22
    assert read_assignments(project.paths.manifests)[sample["sample_id"]].split == "train"
    version = project.version("hdf5_pack", "train")
    for path in files:
        path.with_name("." + path.name).rename(path)
    project.refresh("train", assets=["all_samples", *SPLIT_ASSETS])
    assert sample["safe_id"] in Pack.open(project.paths.pack("train")).safe_ids
    assert project.metadata("sam_cache", "train")["prompt sets made"] == 0
    assert project.version("hdf5_pack", "train") != version


def test_nothing_that_was_assigned_moves_unless_a_new_draw_is_asked_for(project):
    before = {key: one.split for key, one in read_assignments(project.paths.manifests).items()}
    project.change(data={"split_seed": 7})
    assert project.materialise("all_samples", force=True).success
    assert {key: one.split for key, one in read_assignments(project.paths.manifests).items()} == before
    assert project.materialise("all_samples", resplit=True).success
    after = {key: one.split for key, one in read_assignments(project.paths.manifests).items()}
    assert after != before
    assert sorted(after.values()) == sorted(before.values())


def test_one_image_content_never_stands_in_two_base_splits(new_project):
    image, mask = draw(900)
    for number, name in enumerate(("boxes/twin_a", "shapes/discs/twin_b", "boxes/twin_c")):
        add_sample(new_project.folder, name, 1 + 2 * number * 3, image=image, mask=mask)
    new_project.refresh(assets=["all_samples"])
    twins = {row["split"] for row in rows_of(new_project, "all_samples") if "twin" in row["sample_id"]}
    assert len(twins) == 1


def test_an_image_of_a_base_split_is_refused_in_a_named_one_and_reported(project):
    sample = rows_of(project, "test")[0]
    copy_sample(project, sample, "caves/copy")
    named_split(project, "test-caves", count=2)
    project.refresh("test-caves", assets=["manifest"])
    assert len(rows_of(project, "test-caves")) == 2
    refused = project.metadata("manifest", "test-caves")["invalid samples"]
    assert f"its image is that of {sample['sample_id']}, which stands in split test" in refused


def test_a_named_split_made_before_the_base_manifests_is_held_apart_from_them_too(new_project):
    new_project.refresh(assets=["all_samples"])
    sample = rows_of(new_project, "all_samples")[0]
    copy_sample(new_project, sample, "caves/copy")
    named_split(new_project, "test-caves", count=1)
    new_project.refresh("test-caves", assets=["manifest"])
    assert [row["sample_id"] for row in rows_of(new_project, "test-caves")] == ["caves/00"]


def test_an_image_of_a_named_split_is_refused_in_the_base_roots(project):
    named_split(project, "test-caves", count=2)
    project.refresh("test-caves", assets=["manifest"])
    row = rows_of(project, "test-caves")[0]
    for kind in ("image", "mask"):
        source = project.folder / "splits" / "test-caves" / f"{kind}s" / row[f"{kind}_path"]
        shutil.copyfile(source, project.folder / f"{kind}s" / "boxes" / f"leak{source.suffix}")
    project.refresh(assets=["all_samples"])
    assert "which stands in split test-caves" in project.metadata("all_samples")["invalid samples"]


def test_what_a_pattern_groups_stays_in_one_split(new_project):
    for patient in range(6):
        for view in range(3):
            add_sample(new_project.folder, f"boxes/p{patient}_{view}", 100 + 3 * patient + view)
    new_project.change(data={"group_by": r"/(p\d)_"})
    new_project.refresh(assets=["all_samples"])
    splits = {}
    for row in rows_of(new_project, "all_samples"):
        if "/p" in row["sample_id"]:
            splits.setdefault(row["sample_id"][:8], set()).add(row["split"])
    assert len(splits) == 6
    assert all(len(of) == 1 for of in splits.values())


def test_what_a_table_groups_stays_in_one_split(new_project):
    ids = [f"{name}/{number:02d}" for name in ("boxes", "shapes/discs") for number in range(8)]
    lines = [f"{key},site{at % 4}" for at, key in enumerate(ids)]
    (new_project.folder / "groups.csv").write_text("\n".join(["sample_id,site", *lines]))
    new_project.change(data={"group_by": "groups.csv:site"})
    new_project.refresh(assets=["all_samples"])
    split_of = {row["sample_id"]: row["split"] for row in rows_of(new_project, "all_samples")}
    for site in range(4):
        assert len({split_of[key] for at, key in enumerate(ids) if at % 4 == site}) == 1


@pytest.mark.parametrize(
    ("group_by", "said"),
    [("(unclosed", "data.group_by is no regular expression"), ("groups.csv:site", "cannot be read as CSV")],
)
def test_a_grouping_that_cannot_be_is_named(new_project, group_by, said):
    new_project.change(data={"group_by": group_by})
    with pytest.raises(RunFailed, match=said):
        new_project.refresh(assets=["all_samples"])


def official(project, splits):
    lines = [f"{key},{split}" for key, split in splits]
    (project.folder / "official.csv").write_text("\n".join(["sample_id,split", *lines]) + "\n")
    project.change(data={"splits_file": "official.csv"})


def test_an_official_split_is_taken_as_it_is_and_refuses_who_is_not_listed(new_project):
    listed = [(f"boxes/{number:02d}", BASE[number % 3]) for number in range(8)]
    official(new_project, listed)
    new_project.refresh(assets=["all_samples"])
    assert {row["sample_id"]: row["split"] for row in rows_of(new_project, "all_samples")} == dict(listed)
    assert new_project.metadata("all_samples")["invalid"] == 8
    assert "not listed in official.csv" in new_project.metadata("all_samples")["invalid samples"]


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ([("boxes/00", "training")], r"names splits \['training'\]: only train, val, test are known"),
        ([("boxes/00", "train"), ("boxes/00", "val")], "lists 1 samples more than once, such as boxes/00"),
    ],
)
def test_an_official_split_that_cannot_be_is_refused_and_nothing_written(new_project, splits, said):
    official(new_project, splits)
    with pytest.raises(RunFailed, match=said):
        new_project.refresh(assets=["all_samples"])
    assert not (new_project.root / "manifests" / "all_samples.parquet").exists()


def test_without_a_valid_sample_the_scan_says_what_it_found(new_project):
    shutil.rmtree(new_project.folder / "masks")
    (new_project.folder / "masks").mkdir()
    with pytest.raises(RunFailed, match=r"all_samples failed: 0 of 16 .*can be used. A sample is an") as raised:
        new_project.refresh()
    assert "boxes/00" in str(raised.value)
    assert str(raised.value).endswith("\n  and 6 more")
    assert not (new_project.root / "manifests" / "all_samples.parquet").exists()


def test_a_named_split_of_which_nothing_can_be_used_fails_and_says_why(project):
    for at, sample in enumerate(rows_of(project, "train")[:2]):
        copy_sample(project, sample, f"caves/{at}")
    with pytest.raises(RunFailed, match=r"manifest\[test-caves\] failed: 0 of 2 .* can be used") as raised:
        project.refresh("test-caves")
    assert "which stands in split train; remove one of the two" in str(raised.value)
    assert "then materialise manifest[test-caves] again" in str(raised.value)
    assert not (project.root / "manifests" / "test-caves.parquet").exists()


def test_a_named_split_whose_folder_is_empty_fails(project):
    folder = project.folder / "splits" / "test-caves"
    folder.mkdir(parents=True)
    with pytest.raises(RunFailed, match=r"data.splits.test-caves.images_root is .*where there is no folder"):
        project.refresh("test-caves")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    with pytest.raises(RunFailed, match=r"manifest\[test-caves\] failed: 0 of 0 files or pairs found below"):
        project.refresh("test-caves")


def test_a_run_keeps_its_process_out_of_the_list_of_runs():
    assert get_tag_type(PROCESS) is TagType.HIDDEN


def test_a_root_that_is_not_there_is_named_with_its_setting(new_project):
    (new_project.folder / "images").rename(new_project.folder / "moved")
    with pytest.raises(RunFailed, match=r"data.images_root is .*images, where there is no folder"):
        new_project.refresh()


def test_a_split_without_samples_says_why(new_project):
    for path in [*(new_project.folder / "images").rglob("*.*"), *(new_project.folder / "masks").rglob("*.*")]:
        if path.is_file() and path.stem not in ("00", "01"):
            path.unlink()
    with pytest.raises(RunFailed, match=r"Split '(val|test)' has no samples: 4 valid samples in all"):
        new_project.refresh()


def test_a_split_that_fails_does_not_keep_the_others_from_the_title(new_project):
    shapes = sorted((new_project.folder / "images" / "boxes").iterdir())
    rows = [f"boxes/{path.stem},{'val' if at < 2 else 'train'}" for at, path in enumerate(shapes)]
    (new_project.folder / "official.csv").write_text("\n".join(["sample_id,split", *rows]))
    new_project.change(data={"splits_file": "official.csv"})
    with pytest.raises(RunFailed, match="Split 'test' has no samples: 8 valid samples in all"):
        new_project.refresh()
    assert read_champion(new_project.paths.posteriors).training_split == "train"


def test_a_sample_that_was_refused_for_its_double_is_taken_when_that_is_gone(project):
    split = project.folder / "splits" / "test-caves"
    add_sample(split, "caves/new", 500)
    add_sample(split, "caves/old", 502, image=_pixels(project, "boxes/01"))
    project.refresh("test-caves")
    assert [row["sample_id"] for row in rows_of(project, "test-caves")] == ["caves/new"]
    for path in (*(project.folder / "images/boxes").glob("01.*"), *(project.folder / "masks/boxes").glob("01.*")):
        path.unlink()
    project.refresh()
    assert [row["sample_id"] for row in rows_of(project, "test-caves")] == ["caves/new", "caves/old"]


def _pixels(project, sample_id):
    found = next((project.folder / "images").glob(f"{sample_id}.*"))
    return np.asarray(Image.open(found).convert("RGB"))


def test_a_run_that_waits_for_the_pool_says_for_whom(project):
    told = []
    with project.instance() as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default("gpu")
        held = instance.create_run_for_job(defs.resolve_job_def("scan"))
        instance.event_log_storage.claim_concurrency_slot("gpu", held.run_id, "other")
        stale = [Freshness("all_samples", ""), Freshness("sam_cache", "test")]
        tell_wait(stale, instance, told.append)
    assert told == [f"Waiting for pool gpu, which run {held.run_id} holds. If that is dead, end it in the UI."]
