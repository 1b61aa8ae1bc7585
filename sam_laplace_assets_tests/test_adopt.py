"""The command `sam-laplace adopt`, on a project root as the original scripts leave it."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from sam_laplace_assets.cli import cli
from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.storage import adopt as files_to_adopt
from sam_laplace_assets.storage.adopted import read_adopted, write_adopted
from sam_laplace_assets.storage.manifest import read_rows
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.prompts import read_prompt_sets
from sam_laplace_assets_tests.original_root import SPLITS, make_original, write_json
from sam_laplace_assets_tests.small_project import SmallProject, count_calls, hashes

CLASSES = {"shapes/discs": 6, "boxes": 6}
FIRST = ("all_samples", "manifest", "prompt_sets", "sam_cache")


class Died(BaseException):
    """The process is gone."""


def adopt(project, *arguments, root=None):
    """What the command prints; it must succeed."""
    result = CliRunner().invoke(cli, ["adopt", "--from", str(root or project.folder / "old"), *arguments])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def table(output):
    """(split, kind) -> adopted, there, not adopted."""
    found = {}
    for line in output.splitlines():
        words = line.split()
        if words and words[0] in SPLITS and all(word.isdecimal() for word in words[-3:]):
            found[words[0], " ".join(words[1:-3])] = tuple(map(int, words[-3:]))
    return found


def totals(output, kind):
    return tuple(map(sum, zip(*(counts for (_, what), counts in table(output).items() if what == kind), strict=True)))


def data_of(folder):
    """SHA-256 of what is no memory of ours."""
    kept = ("prompt_sets", "sam_precompute", "manifests", "original")
    return {name: sha256 for name, sha256 in hashes(folder).items()
            if name.startswith(kept) and ".ledger." not in name and "checkpoints.json" not in name}  # fmt: skip


def times_of(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))
            if path.is_file() and "leases" not in path.parts}  # fmt: skip


def made(project):
    """Samples whose prompt sets, and prompt sets whose logits or maps, the newest materialisations made."""
    units = {"prompt_sets": "samples", "sam_cache": "prompt sets"}
    return tuple(sum(project.metadata(asset, split)[f"{unit} made"] for split in SPLITS)
                 for asset, unit in units.items())  # fmt: skip


def set_folder(root, at=0, promptset_id=0, split="train"):
    """The folder of a prompt set of the `at`-th sample."""
    return sorted((root / "sam_precompute" / split).iterdir())[at] / f"promptset_{promptset_id:04d}"


def edit(path, **changes):
    write_json(path, json.loads(path.read_text()) | changes)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Images, masks and settings of a project that the original scripts were run on, into old/; to be read only."""
    project = SmallProject.new(tmp_path_factory.mktemp("original"), classes=CLASSES)
    make_original(project.folder / "old", project.folder)
    return project


@pytest.fixture
def project(original, tmp_path, monkeypatch, plain_pictures):
    """A copy of it, its settings in force."""
    return original.copy(tmp_path).use(monkeypatch)


@pytest.fixture
def encoded(monkeypatch):
    """Counts the images that SAM's encoder is given."""
    return count_calls(monkeypatch, FrozenSam, "embed_batch")


def test_what_is_adopted_is_not_made_again(project, encoded):
    before = hashes(project.folder / "old")
    output = adopt(project)
    assert totals(output, "samples") == (12, 0, 0)
    assert totals(output, "prompt sets") == totals(output, "logits") == totals(output, "maps") == (24, 0, 0)
    assert hashes(project.folder / "old") == before
    written, asked = data_of(project.root), encoded["embed_batch"]
    times = times_of(project.root / "sam_precompute") | times_of(project.root / "prompt_sets")
    ran = project.refresh(assets=FIRST)
    assert encoded["embed_batch"] == asked
    assert {one for one in ran if "[" not in one} == {"all_samples"}
    later = times_of(project.root / "sam_precompute") | times_of(project.root / "prompt_sets")
    assert {path for path in times if times[path] != later[path] and ".ledger." not in path.name} == set()
    assert {name: sha for name, sha in data_of(project.root).items() if name in written} == written
    assert made(project) == (0, 0)
    assert project.refresh(assets=FIRST) == []


def test_splits_and_points_are_the_originals_and_arrays_are_its_very_files(project):
    adopt(project)
    for split in SPLITS:
        rows = [row for row in read_rows(project.paths.manifests, "all_samples") if row["split"] == split]
        listed = (project.folder / "old" / "manifests" / f"{split}.csv").read_text().splitlines()[1:]
        assert sorted(row["sample_id"] for row in rows) == sorted(line.split(",")[0] for line in listed)
        for row in rows:
            old = json.loads((project.folder / "old" / "prompt_sets" / split / f"{row['safe_id']}.json").read_text())
            ours = read_prompt_sets(project.root / "prompt_sets" / split / f"{row['safe_id']}.json")
            assert [[list(map(list, one.pos)), list(map(list, one.neg))] for one in ours] == [
                [one["pos"], one["neg"]] for one in old["prompt_sets"]
            ]
    for path in (project.folder / "old" / "sam_precompute").rglob("*.npy"):
        assert (project.root / path.relative_to(project.folder / "old")).samefile(path)


def test_the_whole_graph_stands_on_it(project):
    adopt(project)
    project.refresh()
    assert len(Pack.open(project.paths.pack("train"))) == 12
    assert project.refresh() == []


def test_a_dry_run_writes_nothing_and_says_the_same(project):
    before = hashes(project.folder)
    output = adopt(project, "--dry-run")
    assert hashes(project.folder) == before
    assert output.splitlines()[-1] == "Nothing was written. To adopt it, leave out --dry-run."
    assert table(output) == table(adopt(project))


def test_the_second_time_there_is_nothing_to_do(project, encoded):
    adopt(project)
    before, asked = times_of(project.root), encoded["embed_batch"]
    output = adopt(project)
    assert times_of(project.root) == before
    assert encoded["embed_batch"] == asked
    assert totals(output, "logits") == totals(output, "maps") == totals(output, "prompt sets") == (0, 24, 0)
    assert totals(output, "samples") == (0, 12, 0)
    assert "There is nothing to adopt" in output


@pytest.mark.parametrize("survives", [0, 1, 5, 40])
@pytest.mark.parametrize("in_place", [False, True])
def test_adopting_goes_on_after_a_kill(original, project, tmp_path_factory, monkeypatch, survives, in_place):
    whole = original.copy(tmp_path_factory.mktemp("whole"))
    for one in (whole, project):
        if in_place:
            one.change(data={"project_root": "old"})
        one.use(monkeypatch)
        if one is project:
            with monkeypatch.context() as patch:
                kill_after(patch, survives)
                with pytest.raises(Died):
                    adopt(one)
        adopt(one)
    found, expected = (data_of(one.folder / ("old" if in_place else "project")) for one in (project, whole))
    assert without_how(found) == without_how(expected)
    assert totals(adopt(project), "logits") == (0, 24, 0)
    assert totals(adopt(project), "maps") == (0, 24, 0)


def without_how(found):
    """What was written, but for meta.json, which says whether SAM was asked again in this run."""
    return {name: sha256 for name, sha256 in found.items() if not name.endswith("meta.json")}


def kill_after(patch, survives):
    left, write_set, link = [survives], files_to_adopt.files.write_set, files_to_adopt.link

    def mortal(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Died
            return function(*args, **kwargs)

        return call

    patch.setattr(files_to_adopt.files, "write_set", mortal(write_set))
    patch.setattr(files_to_adopt, "link", mortal(link))


def test_in_place_the_originals_files_are_kept_and_the_data_are_the_same(project, tmp_path, monkeypatch):
    beside = project.copy(tmp_path / "beside")
    beside.use(monkeypatch)
    adopt(beside)
    beside.refresh(assets=FIRST)
    versions = {
        (asset, split): beside.version(asset, split) for asset in ("prompt_sets", "sam_cache") for split in SPLITS
    }
    project.use(monkeypatch)
    before = hashes(project.folder / "old")
    project.change(data={"project_root": "old"})
    output = adopt(project)
    assert "kept below original/" in output
    project.refresh(assets=FIRST)
    assert versions == {one: project.version(*one) for one in versions}
    old = project.folder / "old"
    after = hashes(old)
    for name, sha256 in before.items():
        assert sha256 in (after.get(name), after.get(f"original/{name}")), name
    assert "There is nothing to adopt" in adopt(project)


def test_gc_finds_nothing_foreign_but_the_originals_runs(project):
    project.change(data={"project_root": "old"})
    adopt(project)
    project.refresh()
    output = CliRunner().invoke(cli, ["gc"]).output
    assert "Nothing to remove" in output
    assert output.splitlines()[1:] == [
        "Unknown, left alone: 2",
        "  laplace/no_image/run_v1",
        "  checkpoints/no_image/run_v1",
    ]


def test_in_place_gc_does_not_cost_the_original_a_sample_that_is_gone(project):
    project.change(data={"project_root": "old"})
    old = project.folder / "old"
    name = csv_rows(old / "manifests" / "train.csv")[0]["sample_id"]
    for root in ("images", "masks"):
        (gone,) = (project.folder / root).glob(f"{name}.*")
        gone.unlink()
    key = name.replace("/", "__")
    before = hashes(old / "sam_precompute" / "train" / key)
    assert before
    adopt(project)
    project.refresh("train", assets=FIRST)
    assert CliRunner().invoke(cli, ["gc", "--delete"]).exit_code == 0
    assert not (old / "sam_precompute" / "train" / key).exists()
    assert hashes(old / "original" / "sam_precompute" / "train" / key) == before


def test_tables_as_csv_do_not_cost_the_originals_manifests(project):
    project.change(data={"project_root": "old"}, storage={"table_format": "csv"})
    before = (project.folder / "old" / "manifests" / "train.csv").read_text()
    adopt(project)
    project.refresh("train", assets=FIRST)
    assert (project.folder / "old" / "original" / "manifests" / "train.csv").read_text() == before
    assert (project.folder / "old" / "manifests" / "train.csv").read_text() != before
    assert "There is nothing to adopt" in adopt(project)


def test_what_cannot_be_taken_is_named_and_made_again_and_the_others_are_adopted(project):
    old = project.folder / "old"
    broken = break_some(project, old)
    output = adopt(project, "--verify", "all", "--verbose")
    for words in broken:
        assert any(all(word in line for word in words) for line in output.splitlines()), (words, output)
    assert totals(output, "samples") == (11, 0, 1)
    assert totals(output, "prompt sets") == (18, 0, 2)  # sets adopted, samples refused
    assert totals(output, "logits") == (15, 0, 3)
    assert totals(output, "maps") == (17, 0, 1)
    project.refresh(assets=FIRST)
    assert made(project) == (2, 8)
    for folder in (project.root / "sam_precompute" / "train").iterdir():
        for path in folder.rglob("*.npy"):
            assert np.isfinite(np.load(path)).all()


def break_some(project, old):
    """One of each kind of damage in train, and the words that must name it."""
    cut = set_folder(old, 0) / "logits_256.npy"
    cut.write_bytes(cut.read_bytes()[:1000])
    np.save(set_folder(old, 0, 1) / "pos_map.npy", np.zeros((64, 64), np.float16))
    foreign = set_folder(old, 1) / "logits_256.npy"
    np.save(foreign, np.load(foreign) * np.float16(0.9))
    nan = set_folder(old, 2) / "logits_256.npy"
    np.save(nan, np.full((256, 256), np.nan, np.float16))
    keys = [set_folder(old, at).parent.name for at in range(6)]
    off = old / "prompt_sets" / "train" / f"{keys[3]}.json"
    document = json.loads(off.read_text())
    document["prompt_sets"][1]["pos"][0] = document["prompt_sets"][1]["neg"][0]
    write_json(off, document)
    edit(old / "prompt_sets" / "train" / f"{keys[4]}.json", version=2)
    names = [key.replace("__", "/") for key in keys]
    for root in ("images", "masks"):
        (gone,) = (project.folder / root).glob(f"{names[5]}.*")
        gone.unlink()
    return [
        (f"{names[0]}, prompt set 0", "logits_256.npy is damaged"),
        (f"{names[0]}, prompt set 1", "pos_map.npy cannot be used", "shape (64, 64)"),
        (f"{names[1]}, prompt set 0", "from those of this SAM"),
        (f"{names[2]}, prompt set 0", "not finite"),
        (names[3], "prompt set 1 lies beside the object"),
        (names[4], "format version 2", "Upgrade the package"),
        (names[5], "are gone"),
    ]  # fmt: skip


def test_where_one_that_sam_is_asked_about_differs_the_others_are_not_believed_however_often(project):
    keys = {path.name for path in (project.folder / "old" / "sam_precompute" / "train").iterdir()}
    first = min(keys, key=lambda key: hashlib.sha256(key.encode()).digest())
    for path in (project.folder / "old" / "sam_precompute" / "train" / first).rglob("logits_256.npy"):
        np.save(path, np.load(path) + np.float16(1))
    for _ in range(2):
        output = adopt(project, "--verify", "2")
        assert table(output)["train", "logits"][0] == 1  # the other one that SAM was asked about
        assert "not believed, since 1 of 2 that SAM was asked about disagree" in output
    assert table(output)["val", "logits"] == (0, 4, 0)
    assert table(adopt(project, "--verify", "all"))["train", "logits"] == (8, 2, 2)


def test_logits_of_another_sam_are_made_again_though_only_some_are_asked_about(project, encoded):
    for path in (project.folder / "old" / "sam_precompute").rglob("logits_256.npy"):
        np.save(path, np.load(path) * np.float16(0.5))
    output = adopt(project, "--verify", "2")
    assert totals(output, "logits") == (0, 0, 24)
    assert totals(output, "maps") == (24, 0, 0)
    project.refresh(assets=FIRST)
    assert made(project) == (0, 24)


def test_an_image_that_is_younger_than_its_logits_is_asked_about_first(project):
    row = next(row for row in csv_rows(project.folder / "old" / "manifests" / "train.csv"))
    (path,) = (project.folder / "images").glob(f"{row['sample_id']}.*")
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    output = adopt(project, "--verify", "1")
    assert table(output)["train", "logits"] == (0, 0, 12)
    assert table(output)["val", "logits"] == (4, 0, 0)
    assert f"{row['sample_id']}, prompt set 0: its logits are up to" in output


def csv_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_in_place_a_file_of_a_newer_version_is_named_and_left_and_the_others_are_adopted(project):
    project.change(data={"project_root": "old"})
    old = project.folder / "old"
    meta = set_folder(old, 1) / "meta.json"
    prompts = old / "prompt_sets" / "train" / f"{set_folder(old, 2).parent.name}.json"
    for path in (meta, prompts):
        edit(path, version=2)
    before = [path.read_text() for path in (meta, prompts)]
    output = adopt(project)
    assert table(output)["train", "prompt sets"] == (10, 0, 1)
    assert table(output)["train", "logits"] == table(output)["train", "maps"] == (8, 0, 1)
    for path in (meta, prompts):
        assert f"{path} has format version 2, this package reads up to 1. Upgrade the package." in output
    assert [path.read_text() for path in (meta, prompts)] == before


def test_a_meta_that_names_another_sam_is_not_believed_until_sam_is_asked(project):
    for path in (project.folder / "old" / "sam_precompute").rglob("meta.json"):
        edit(path, checkpoint="/data/sam_other.pth")
    output = adopt(project)
    assert totals(output, "logits") == (0, 0, 24)
    assert "its meta.json says checkpoint sam_other.pth, the settings sam.pt" in output
    assert totals(adopt(project, "--verify", "all"), "logits") == (24, 0, 0)


@pytest.mark.parametrize(
    ("sam", "words"),
    [({"precision": "bf16"}, "the settings ask for precision bf16, the original's are float32"),
     ({"cache_embeddings": "float16"}, "the settings keep embeddings as float16")],
)  # fmt: skip
def test_settings_that_ask_for_another_kind_of_logits_get_none(project, encoded, sam, words):
    project.change(sam=sam)
    output = adopt(project, "--verify", "all")
    assert totals(output, "logits") == (0, 0, 24)
    assert totals(output, "maps") == (24, 0, 0)
    assert words in output
    assert encoded["embed_batch"] == 0


def test_it_says_what_was_proved_and_what_is_believed(project):
    output = adopt(project, "--verify", "5")
    assert "train: SAM was asked again about 5 prompt sets; 5 have the same branch, and logits within" in output
    assert "train: the other 7 logits are believed" in output
    metas = [json.loads(path.read_text()) for path in (project.root / "sam_precompute" / "train").rglob("meta.json")]
    assert sorted(meta["adopted"] for meta in metas) == ["asked of SAM again"] * 5 + ["believed"] * 7
    assert "Not adopted, heads and posteriors: checkpoints/no_image/run_v1, laplace/no_image/run_v1." in output


def test_maps_drawn_another_way_are_made_again_without_sam(original, project, encoded):
    shutil.rmtree(project.folder / "old")
    make_original(project.folder / "old", project.folder, half_pixel=False)
    output = adopt(project)
    assert totals(output, "maps") == (0, 0, 24)
    assert totals(output, "logits") == (24, 0, 0)
    asked = encoded["embed_batch"]
    project.refresh(assets=FIRST)
    assert encoded["embed_batch"] == asked
    assert project.refresh(assets=FIRST) == []


def test_without_a_device_points_and_maps_are_adopted_and_logits_are_not(project, monkeypatch):
    project.change(sam={"device": "cuda"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    output = adopt(project)
    assert totals(output, "logits") == (0, 0, 24)
    assert totals(output, "maps") == (24, 0, 0)
    assert "SAM cannot be asked here: device: cuda was asked for" in output
    project.change(sam={"device": "cpu"})
    assert totals(adopt(project), "logits") == (24, 0, 0)


def test_adopted_prompt_sets_stand_for_todays_settings_and_no_others(project):
    adopt(project)
    project.refresh("val", assets=FIRST)
    version = project.version("prompt_sets", "val")
    project.change(prompt_generation={"num_promptsets_val": 3})
    project.refresh("val", assets=FIRST)
    assert project.version("prompt_sets", "val") != version
    project.change(prompt_generation={"num_promptsets_val": 2})
    project.refresh("val", assets=FIRST)
    assert project.version("prompt_sets", "val") == version
    assert project.materialise("prompt_sets", split="val", force=True).success
    assert project.version("prompt_sets", "val") == version


def test_settings_that_ask_for_other_prompt_sets_are_named(project):
    project.change(prompt_generation={"num_promptsets_val": 3, "max_pairs": 1})
    output = adopt(project, "--verbose")
    assert "it has 2 prompt sets, prompt_generation.num_promptsets_val is 3" in output
    assert "the settings ask for 1 to 1 pairs" in output
    project.change(prompt_generation={"mode": "interactive"})
    assert "the settings ask for interactive prompt sets, these are pairs" in adopt(project)


def test_a_sample_that_this_project_gave_another_split_stays_there(project):
    project.refresh(assets=("all_samples",))
    splits = {row["sample_id"]: row["split"] for row in read_rows(project.paths.manifests, "all_samples")}
    output = adopt(project, "--verbose")
    moved = totals(output, "samples")[2]
    assert moved
    assert output.count("of this project") == moved
    after = {row["sample_id"]: row["split"] for row in read_rows(project.paths.manifests, "all_samples")}
    assert after == splits


def test_what_this_project_has_drawn_before_is_kept(project):
    adopt(project, "--verify", "1")
    for split in SPLITS:
        write_adopted(project.root / "prompt_sets" / split, type(read_adopted(project.root / "prompt_sets" / split))())
    project.refresh(assets=FIRST)
    output = adopt(project)
    assert totals(output, "prompt sets") == (0, 0, 12)
    assert "were drawn in this project before" in output
    assert project.refresh(assets=FIRST) == []


@pytest.mark.parametrize("number", ["0", "-1", "some"])
def test_verify_takes_a_number_or_all(project, number):
    result = CliRunner().invoke(cli, ["adopt", "--from", str(project.folder / "old"), "--verify", number])
    assert result.exit_code == 2
    assert "neither a number above 0 nor all" in result.output


def test_a_folder_that_is_no_project_root_is_refused(project):
    result = CliRunner().invoke(cli, ["adopt", "--from", str(project.folder / "images")])
    assert result.exit_code == 1
    assert "holds no manifests/train.csv" in str(result.exception)
    assert not project.root.exists()


def test_a_checkpoint_that_is_not_there_is_named(project):
    project.change(sam={"checkpoint": "none.pt"})
    result = CliRunner().invoke(cli, ["adopt", "--from", str(project.folder / "old")])
    assert result.exit_code == 1
    assert "none.pt is not there" in result.output


def test_images_that_are_not_there_are_named(project):
    project.change(data={"images_root": "nowhere"})
    result = CliRunner().invoke(cli, ["adopt", "--from", str(project.folder / "old"), "--dry-run"])
    assert result.exit_code == 1
    assert "Set data.images_root to the folder of classes" in result.output


def test_without_settings_it_says_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAM_LAPLACE_CONFIG", raising=False)
    result = CliRunner().invoke(cli, ["adopt", "--from", str(tmp_path)])
    assert result.exit_code == 1
    assert "copy it here" in result.output
