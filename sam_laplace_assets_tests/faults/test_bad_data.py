"""Bad input of every kind: each is named or taken, nothing stops, and nothing goes without a word."""

import json
import os
import threading
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sam_laplace_assets.assets.manifest import plan_all_samples
from sam_laplace_assets.assets.splitting import NoValidSample
from sam_laplace_assets.storage import images, samples
from sam_laplace_assets.storage.files import read_json
from sam_laplace_assets.storage.manifest import ManifestStore, Place, read_row, read_rows
from sam_laplace_assets.storage.materialise import Outcome
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.samples import Found
from sam_laplace_assets.storage.watch import watch
from sam_laplace_assets_tests.faults.bad_data import KINDS, MARKER, UNDO, spot_of, tag, turned, unlinked
from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.small_project import SPLIT_ASSETS, SmallProject, draw, failure
from sam_laplace_assets_tests.storage.fakes import make

PATIENCE = 60

PREPARED = ("all_samples", *SPLIT_ASSETS)
ALL_IN_TRAIN = {"group_by": "/"}
BOMBS = [name for name in KINDS if "claims" in name or "10^12" in name]


def place_of(project) -> Place:
    return project.paths.manifests


def scan(project, **how) -> Outcome:
    """What all_samples does, without Dagster."""
    return make(plan_all_samples(project.settings, **how), ManifestStore(place_of(project), "all_samples"))


def rows_of(project, name="all_samples"):
    return read_rows(place_of(project), name)


def file_of(row):
    return row["image_path"] or row["mask_path"]


def of_spot(spot, rows):
    """Rows of one kind, by their file within its class."""
    mine = [row for row in rows if file_of(row) == spot.name or file_of(row).startswith(f"{spot.name}/")]
    told = {file_of(row).removeprefix(spot.name).removeprefix("/"): row for row in mine}
    assert len(told) == len(mine)
    return told


def require(name):
    if reason := KINDS[name].needs():
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def no_sparse_file_stays(tmp_path):
    """What takes no room here would fill a disk where somebody copies it."""
    yield
    for path in tmp_path.glob("masks/npy_of_10_12_zeros*/x.npy"):
        path.unlink()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A project of good samples that were scanned; to be read only."""
    project = SmallProject.new(tmp_path_factory.mktemp("good"), classes={"discs": 3, "boxes": 1})
    scan(project)
    return project


@pytest.fixture(scope="module")
def counted():
    """Kinds by what became of them; kept when all were tried."""
    found = Counter()
    yield found
    if found.total() == len(KINDS):
        keep("a kind of bad or odd file among good samples", group="bad input", tried=found["tried"],
             survived=found["tried"], gets="taken, or named with the reason; the others stay as they were")  # fmt: skip


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("name", KINDS)
def test_each_kind_is_named_or_taken_and_the_others_stay_as_they_were(good, tmp_path, counted, name):
    counted["skipped"] += 1
    require(name)
    project = good.copy(tmp_path)
    spot = spot_of(project.folder, name)
    KINDS[name].put(spot)
    with unlinked(MARKER) as ran:
        made = scan(project)
        assert not ran()
    rows = rows_of(project)
    told = of_spot(spot, rows)
    assert told.keys() == KINDS[name].says.keys()
    for file, text in KINDS[name].says.items():
        reason = told[file]["reason"]
        assert told[file]["valid"] == (text is None), reason
        assert text is None or text in reason, reason
        assert text is None or reason.isprintable()
    mine = [row["sample_id"] for row in told.values()]
    assert [row for row in rows if row["sample_id"] not in mine] == rows_of(good)
    assert made.made == len(told)
    again = scan(project)
    assert (again.made, again.data_version) == (0, made.data_version)
    counted.update(skipped=-1, tried=1)


@pytest.mark.timeout(PATIENCE)
@pytest.mark.parametrize("name", BOMBS)
def test_what_claims_to_be_huge_takes_no_memory(tmp_path, name):
    require(name)
    spot = spot_of(tmp_path, name)
    KINDS[name].put(spot)
    image, mask = (next(root.rglob("x.*")) for root in (tmp_path / "images", tmp_path / "masks"))
    found = Found(f"{spot.name}/x", spot.name, str(image), str(mask), None)
    tracemalloc.start()
    row = read_row(found, images_root=tmp_path, masks_root=tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not row["valid"]
    assert peak < 2_000_000


def test_all_kinds_at_once_go_through_to_the_packs(tmp_path, monkeypatch, plain_pictures):
    settings = {"max_failed_fraction": 0.5, **ALL_IN_TRAIN}
    project = SmallProject.new(tmp_path, classes={"discs": 2}, data=settings).use(monkeypatch)
    tried = [name for name in KINDS if not KINDS[name].needs()]
    for name in tried:
        KINDS[name].put(spot_of(project.folder, name))
    with unlinked(MARKER) as ran:
        project.refresh("train", assets=PREPARED)
        assert not ran()
    rows = rows_of(project)
    told = {name: of_spot(spot_of(project.folder, name), rows) for name in tried}
    for name in tried:
        found = {file: row["reason"] for file, row in told[name].items()}
        assert found.keys() == KINDS[name].says.keys(), name
        assert all(text is None or text in found[file] for file, text in KINDS[name].says.items()), found
    require_all_named(project, rows)
    packed, lacking = packed_and_lacking(project)
    valid = {row["safe_id"] for row in rows if row["valid"]}
    assert packed.isdisjoint(lacking)
    assert packed | lacking.keys() == valid
    assert all(reason for reason in lacking.values())
    assert len(lacking) <= 5, lacking
    assert project.refresh("train", assets=PREPARED) == []
    files = sum(len(KINDS[name].says) for name in tried)
    keep("all kinds of files in one project, from images to packs", group="bad input", tried=files, survived=files,
         gets="packs of all that is good; each other file in a table with its reason")  # fmt: skip


def require_all_named(project, rows):
    """Every file that is not hidden is named in one row, or lies below a folder that is, or stands in a reason."""
    for kind in ("image", "mask"):
        named = Counter(row[f"{kind}_path"] for row in rows if row[f"{kind}_path"])
        assert set(named.values()) == {1}
        reasons = "\n".join(row["reason"] for row in rows if row["reason"] and "of one stem" in row["reason"])
        root = project.folder / f"{kind}s"
        for path in files_below(root):
            above = [samples._in_words(one.as_posix()) for one in (path, *path.parents)]
            aliases = [name for name in named if name.startswith(f"{above[0]}/")]
            assert any(name in named for name in above) or above[0] in reasons or aliases, path


def files_below(root):
    """Paths of all that is no folder, links to folders included, relative to a root; nothing that is hidden."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = root.__class__(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        yield from (
            (here / name).relative_to(root)
            for name in [*names, *links] if not name.startswith(".")
        )  # fmt: skip


def packed_and_lacking(project):
    """Safe ids of the pack, and those that failed on the way, with the reason that their asset told."""
    lacking = {}
    for asset in ("prompt_sets", "sam_cache"):
        table = project.metadata(asset, "train").get("failed items", "")
        lacking |= {cells[0]: cells[1] for cells in map(cells_of, table.splitlines()[2:]) if len(cells) == 2}
    return set(Pack.open(project.paths.pack("train")).safe_ids), lacking


def cells_of(line):
    marked = line.replace("\\|", "\0").strip("| ").split(" | ")
    return [cell.replace("\0", "|") for cell in marked]


# EXIF orientation


def store_upright_and_turned(upright, stored):
    """The same samples in two projects: as they are, and stored in every other way with the tag that says so."""
    for orientation in UNDO:
        image, mask = draw(100 + orientation, size=(24, 40))
        for project, options in ((upright, {}), (stored, {"exif": tag(orientation)})):
            picture = Image.fromarray(image)
            for kind in ("images", "masks"):
                (project.folder / kind / "turned").mkdir(parents=True, exist_ok=True)
            path = project.folder / "images" / "turned" / f"{orientation}.png"
            (turned(picture, orientation) if options else picture).save(path, **options)
            np.save(project.folder / "masks" / "turned" / f"{orientation}.npy", mask)


def test_a_turned_image_and_its_upright_mask_are_all_through_what_the_upright_one_is(tmp_path, plain_pictures):
    for name in ("upright", "turned"):
        (tmp_path / name).mkdir()
    projects = [SmallProject.new(tmp_path / name, classes={}, data=ALL_IN_TRAIN) for name in ("upright", "turned")]
    store_upright_and_turned(*projects)
    found = []
    for project in projects:
        with pytest.MonkeyPatch.context() as patch:
            project.use(patch).refresh("train", assets=PREPARED)
            found.append([project.version(asset, "train") for asset in SPLIT_ASSETS])
            found[-1].append([read_json(path)["prompt_sets"] for path in sorted(project.root.rglob("turned__*.json"))])
            found[-1].append([path.read_bytes() for path in sorted(project.root.rglob("*.npy"))])
            found[-1].append(rows_of(project))
    assert found[0] == found[1]
    assert all(row["valid"] and (row["image_h"], row["image_w"]) == (24, 40) for row in found[1][-1])
    assert len(found[0][-2]) == 3 * 2 * len(UNDO)


def test_a_turned_image_is_predicted_as_the_upright_one_is(tmp_path, read_only):
    from sam_laplace_assets.resources.annotator import load_annotator

    annotator, clicks = load_annotator(), [(20, 12, 1), (2, 3, 0)]
    image = Image.fromarray(draw(7, size=(24, 40))[0])
    image.save(tmp_path / "upright.png")
    wanted = annotator.predict(tmp_path / "upright.png", clicks)
    asked = annotator.suggest_prompts(tmp_path / "upright.png", clicks)
    for orientation in UNDO:
        path = tmp_path / f"{orientation}.png"
        turned(image, orientation).save(path, exif=tag(orientation))
        found = annotator.predict(path, clicks)
        np.testing.assert_array_equal(found.probability, wanted.probability)
        assert annotator.suggest_prompts(path, clicks) == asked


# Files that change meanwhile


class Churn(threading.Thread):
    """Writes a sample's image over, cuts it, deletes it, has a pipe in its place, and moves it away and back."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.done, self.rounds = path, threading.Event(), 0
        self.whole = path.read_bytes()

    def run(self):
        away = self.path.with_name(".away")
        while not self.done.is_set():
            for step in (self._cut, self.path.unlink, self._write, lambda: self.path.rename(away),
                         lambda: away.rename(self.path), self.path.unlink, lambda: os.mkfifo(self.path),
                         self.path.unlink, self._write):  # fmt: skip
                step()
                self.done.wait(0.0005)
            self.rounds += 1

    def _cut(self):
        self.path.write_bytes(self.whole[: len(self.whole) // 2])

    def _write(self):
        self.path.write_bytes(self.whole)


def test_files_that_come_and_go_during_a_scan_stop_nothing_and_are_right_afterwards(good, tmp_path):
    project = good.copy(tmp_path)
    churned = [row for row in rows_of(good) if row["class"] == "discs"][:2]
    paths = [project.folder / "images" / churned[0]["image_path"], project.folder / "masks" / churned[1]["mask_path"]]
    threads = [Churn(path) for path in paths]
    others = [row for row in rows_of(good) if row not in churned]
    for thread in threads:
        thread.start()
    scans = 0
    try:
        while min(thread.rounds for thread in threads) < 40:
            scan(project, force=scans % 2 == 0)
            watch(project.settings)
            rows = {row["sample_id"]: row for row in rows_of(project)}
            assert [rows[row["sample_id"]] for row in others] == others
            assert all(rows[row["sample_id"]] == row or rows[row["sample_id"]]["reason"] for row in churned)
            scans += 1
    finally:
        for thread in threads:
            thread.done.set()
            thread.join()
    scan(project)
    assert rows_of(project) == rows_of(good)
    keep("a scan while files are cut, deleted and put back", group="bad input", tried=scans, survived=scans,
         gets="the scan ends; the next one has them right")  # fmt: skip


def test_a_file_that_was_away_while_it_should_be_read_is_read_again_when_it_is_back_as_it_was(good, tmp_path):
    project = good.copy(tmp_path)
    row = rows_of(good)[0]
    path = project.folder / "images" / row["image_path"]
    plan = plan_all_samples(project.settings, force=True)
    path.rename(path.with_name(".away"))
    store = ManifestStore(place_of(project), "all_samples")
    make(plan, store)
    assert "is not there" in rows_of(project)[0]["reason"]
    path.with_name(".away").rename(path)
    plan = plan_all_samples(project.settings)
    store = ManifestStore(place_of(project), "all_samples")
    records = store.records(plan.items)
    assert not store.finished(plan, {key: record for key, record in records.items() if record.parts})
    assert scan(project).made == 1
    assert rows_of(project) == rows_of(good)


def test_a_file_that_may_not_be_read_is_named_and_read_once_it_may(good, tmp_path, monkeypatch):
    """As another user than root sees it, whom no mode keeps out."""
    project = good.copy(tmp_path)
    row = rows_of(good)[0]
    path = project.folder / "images" / row["image_path"]
    opened, asked = os.open, os.access

    def closed(name, *arguments, **options):
        if os.fspath(name) == str(path):
            raise PermissionError(13, "Permission denied", name)
        return opened(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", closed)
        patch.setattr(os, "access", lambda name, mode: os.fspath(name) != str(path) and asked(name, mode))
        assert scan(project).made == 1
        reason = rows_of(project)[0]["reason"]
        assert reason == f"{path} cannot be read (Permission denied). Mend that, then scan the samples again."
        assert scan(project).made == 0
    assert scan(project).made == 1
    assert rows_of(project) == rows_of(good)


def test_what_a_disk_failed_to_read_is_read_again_by_the_next_refresh(tmp_path, monkeypatch, plain_pictures):
    project = SmallProject.new(tmp_path, classes={"discs": 3}, data=ALL_IN_TRAIN).use(monkeypatch)

    def failing(file):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(images, "_npy_header", failing)
        project.refresh("train", assets=["all_samples"])
    struck = [row for row in rows_of(project) if row["mask_path"].endswith(".npy")]
    assert len(struck) == 2
    assert all("cannot be read (Input/output error). Mend that" in row["reason"] for row in struck)
    assert project.refresh("train", assets=["all_samples"]) == ["all_samples"]
    assert all(row["valid"] for row in rows_of(project))
    assert project.refresh("train", assets=["all_samples"]) == []


def test_images_replaced_between_scan_and_cache_are_named_and_the_others_are_cached(
    tmp_path, monkeypatch, plain_pictures
):
    project = SmallProject.new(tmp_path, classes={"discs": 6}, data=ALL_IN_TRAIN).use(monkeypatch)
    before = ("all_samples", "manifest", "prompt_sets")
    project.refresh("train", assets=before)
    rows = rows_of(project, "train")
    instead = {"pipe": os.mkfifo, "folder": os.mkdir, "nothing": lambda path: None,
               "other image": lambda path: Image.fromarray(draw(99)[0]).save(path, "PNG")}  # fmt: skip
    paths = dict(zip(instead, (project.folder / "images" / row["image_path"] for row in rows), strict=False))
    for name, path in paths.items():
        path.rename(path.with_name(f".{path.name}"))
        instead[name](path)
    told = failure(project.materialise("sam_cache", split="train"))
    assert f"4 of {len(rows)} items failed" in told
    assert "has changed since the manifest was made" in told
    for name in ("pipe", "folder", "nothing"):
        assert f"{paths[name]} is {'not there' if name == 'nothing' else 'not a regular file'}" in told
    for name, path in paths.items():
        path.rmdir() if name == "folder" else path.unlink(missing_ok=True)
        path.with_name(f".{path.name}").rename(path)
    project.refresh("train", assets=(*before, "sam_cache"))
    assert rows_of(project, "train") == rows
    assert project.metadata("sam_cache", "train")["prompt sets made"] == 2 * len(paths)


# Next to nothing


def test_a_project_without_one_good_sample_says_so_and_names_what_it_found(tmp_path):
    project = SmallProject.new(tmp_path, classes={})
    for name in ("image of no bytes", "mask without image", "pipe"):
        KINDS[name].put(spot_of(project.folder, name))
    with pytest.raises(NoValidSample) as told:
        scan(project)
    assert "0 of 4 files or pairs found" in str(told.value)
    assert "is not a whole JPEG or PNG file" in str(told.value)


def test_links_out_of_the_roots_are_followed_where_the_settings_allow_it(good, tmp_path):
    project = good.copy(tmp_path)
    spot = spot_of(project.folder, "link to an image elsewhere")
    KINDS["link to an image elsewhere"].put(spot)
    folder = spot_of(project.folder, "link to a folder elsewhere")
    KINDS["link to a folder elsewhere"].put(folder)
    np.save(folder.mask("out/x.npy"), folder.drawn()[1])
    scan(project)
    assert not any(row["valid"] for one in (spot, folder) for row in of_spot(one, rows_of(project)).values())
    before = watch(project.settings).state
    project.change(data={"allow_links_out": True})
    scan(project)
    rows = rows_of(project)
    assert of_spot(spot, rows)["x.png"]["valid"]
    assert of_spot(folder, rows)["out/x.png"]["valid"]
    seen = [watch(project.settings).state]
    Image.fromarray(draw(5)[0]).save(folder.outside() / "y.png")
    seen.append(watch(project.settings).state)
    (folder.outside() / "round").symlink_to(folder.outside())
    seen.append(watch(project.settings).state)
    assert len({before, *seen}) == 4


def test_what_all_samples_tells_is_told_in_full_in_its_table(good, tmp_path):
    """Names of any kind neither break a line of the report nor leave it."""
    project = good.copy(tmp_path)
    names = [name for name in KINDS if name.startswith("named ") and not KINDS[name].needs()]
    for name in names:
        KINDS[name].put(spot_of(project.folder, name))
    plan = plan_all_samples(project.settings)
    store = ManifestStore(place_of(project), "all_samples")
    report = plan.report(make(plan, store).records)
    assert all(text.isprintable() for text in report.warnings)
    refused = [row for row in rows_of(project) if not row["valid"]]
    assert report.tables["invalid samples"] == [{"file": file_of(row), "reason": row["reason"]} for row in refused]
    assert json.dumps(refused).encode()
