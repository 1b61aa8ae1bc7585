"""Files that somebody put in place of ours, signed as ours are: none runs code, none leads out of the project."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
import yaml

from sam_laplace_assets.domain.plan import Item
from sam_laplace_assets.headless import RunFailed
from sam_laplace_assets.resources.annotator import posterior_folder
from sam_laplace_assets.resources.checkpoints import CheckpointRefused, load_frozen_sam
from sam_laplace_assets.settings import SettingsError, load_settings
from sam_laplace_assets.storage import files, reports
from sam_laplace_assets.storage.champion import ChampionStore, require_champion
from sam_laplace_assets.storage.embeddings import EmbeddingCache
from sam_laplace_assets.storage.head import HeadRun, HeadStore
from sam_laplace_assets.storage.index import read_index
from sam_laplace_assets.storage.inside import LeadsOut
from sam_laplace_assets.storage.ledger import Ledger
from sam_laplace_assets.storage.manifest import SCHEMA, Sample, open_manifest, read_assignments
from sam_laplace_assets.storage.pack import Pack, PackRefused
from sam_laplace_assets.storage.panels import PanelStore
from sam_laplace_assets.storage.posterior import PosteriorRun
from sam_laplace_assets.storage.prompts import PromptStore
from sam_laplace_assets.storage.rows import OpenPack, load_rows
from sam_laplace_assets.storage.runs import current_run
from sam_laplace_assets.storage.sam import SamStore, parse_array
from sam_laplace_assets.storage.scores import rows_digests
from sam_laplace_assets.storage.shards import read_slots
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.tables import read_note
from sam_laplace_assets.storage.validation import open_validation_pack
from sam_laplace_assets_tests.faults.figures import Tally
from sam_laplace_assets_tests.faults.hostile import FORMS, HOW, forge, hdf5_secret, of_another_file, rename

REFUSED = (ValueError, NotMade, OSError)
SETS_OF_FILES = {"epoch_state.json": ("config.yaml", "best.pt", "last.pt", "optimizer_last.pt", "scaler_last.pt"),
                 "posterior_meta.json": ("laplace_config.yaml", "laplace_state.pt"),
                 "meta.json": ("logits_256.npy", "pos_map.npy")}  # fmt: skip
KINDS = {
    "project/checkpoints/no_image/run_*/": ("epoch_state.json", *SETS_OF_FILES["epoch_state.json"]),
    "project/laplace/no_image/run_*/": ("posterior_meta.json", *SETS_OF_FILES["posterior_meta.json"]),
    "project/laplace/no_image/": ("champion.json", "champion_history.jsonl", "current-train.json"),
    "project/checkpoints/no_image/": ("current-train.json",),
    "project/prompt_sets/train/": ("*.json",),
    "project/prompt_sets/": ("train.ledger.parquet",),
    "project/sam_precompute/train/*/promptset_0000/": ("meta.json", *SETS_OF_FILES["meta.json"]),
    "project/sam_precompute/": ("checkpoints.json", "train.ledger.parquet"),
    "project/manifests/": ("train.parquet", "all_samples.parquet", "assignments.parquet", "train.ledger.parquet"),
    "project/training_data/no_image/": ("train_index.parquet", "train.h5", "validation_pack.json", "train_shards/*.h5"),
    "project/reports/evaluation/test/": ("summary.json", "*.png", "*.parquet"),
    "project/reports/prompt_scores/test/": ("samples/*.json", "samples.ledger.parquet"),
    "project/reports/debug_panels/train/": ("*.png",),
    "masks/boxes/": ("*.npy",),
    "": ("sam.pt", "config.yaml"),
}
EACH = [f"{folder}{name}" for folder, names in KINDS.items() for name in names]
NEEDED = 36
"""Kinds of files at least; one that is new belongs above."""


@pytest.fixture(scope="module")
def victim(tmp_path_factory, made_project):
    """A copy of the made project whose files are replaced and put back."""
    return made_project.copy(tmp_path_factory.mktemp("victim"))


@pytest.fixture(scope="module")
def read():
    tally = Tally()
    yield tally
    tally.keep("files that hold programs, signed as ours, before every reader", group="security",
               gets="no reader runs them")  # fmt: skip


@pytest.fixture(scope="module")
def run():
    tally = Tally()
    yield tally
    tally.keep("files that hold programs, in place of each kind, before the whole graph", group="security",
               gets="they are made again, or refused by name")  # fmt: skip


def signed_by(path):
    """The file beside this one that names its SHA-256, if there is one."""
    return [name for name, names in SETS_OF_FILES.items() if path.name in names and path.with_name(name).exists()]


@contextlib.contextmanager
def replaced(project, pattern, content):
    """A file of a kind, replaced and, where another names its SHA-256, signed; as it was when the block ends."""
    path = min(project.folder.glob(pattern))
    signed = [path.with_name(name) for name in signed_by(path)]
    before = {one: one.read_bytes() for one in (path, *signed)}
    try:
        if signed:
            forge(path.parent, path.name, content, named_by=signed[0].name)
        else:
            path.write_bytes(content)
        yield path
    finally:
        for one, whole in before.items():
            one.write_bytes(whole)


def read_all(project, path):
    """Read whatever a file may be, as the platform's readers do; how many of them refused it."""
    attempts = [attempt(lambda reader=reader: reader(project, path)) for reader in READERS]
    return sum(attempts)


def attempt(read):
    try:
        read()
    except REFUSED:
        return True
    return False


def resume(project, path):
    """Go on from a run that is not finished."""
    state = files.read_json(path.parent / "epoch_state.json")
    store = HeadStore(project.paths.checkpoints, project.paths.head_pointer("train"))
    item = Item(path.parent.name.removeprefix("run_"), {"run": state["provenance"]})
    return store.resume(item, dict)


READERS = (
    lambda project, path: HeadRun.open(path.parent).weights(),
    resume,
    lambda project, path: PosteriorRun.open(path.parent).head(),
    lambda project, path: require_champion(project.paths.posteriors),
    lambda project, path: ChampionStore(project.paths.posteriors).records([Item("champion", {})]),
    lambda project, path: current_run(path, name="head_checkpoint[train]"),
    lambda project, path: PromptStore(path.parent).read_record(path.stem),
    lambda project, path: SamStore(path.parent.parent.parent).read_record(path.parent.parent.name),
    lambda project, path: parse_array(path.read_bytes()),
    lambda project, path: EmbeddingCache(path.parent.parent.parent, "float16").read(path.parent.parent.name, {}),
    lambda project, path: Ledger.load(path),
    lambda project, path: read_note(path, version=9),
    lambda project, path: open_manifest(project.paths.manifests, "train", images_root=path, masks_root=path),
    lambda project, path: read_assignments(project.paths.manifests),
    lambda project, path: read_index(project.paths.training_index("train"), "parquet", split="train"),
    lambda project, path: load_rows(Pack.open(project.paths.pack("train"))),
    lambda project, path: read_slots(path),
    lambda project, path: open_validation_pack(project.paths.validation_pack),
    lambda project, path: reports.read_summary(path.parent),
    lambda project, path: reports.read_sample(path),
    lambda project, path: PanelStore(path.parent).records([Item(path.stem, {})]),
    lambda project, path: load_frozen_sam("toy", path, device="cpu"),
    lambda project, path: load_settings(path),
)  # fmt: skip


def test_all_kinds_of_files_are_attacked():
    assert len(EACH) >= NEEDED


@pytest.mark.parametrize("pattern", EACH)
def test_no_reader_runs_what_a_file_holds(victim, monkeypatch, tmp_path, pattern, read):
    victim.use(monkeypatch)
    for make in FORMS[pattern.rpartition(".")[2]]:
        marker = tmp_path / make.__name__
        with read.one():
            with replaced(victim, pattern, make(marker)) as path:
                assert read_all(victim, path) >= 1
            assert not marker.exists(), make.__name__


def test_all_forms_would_run_where_somebody_unpickles(tmp_path):
    """The attack itself is real: what the platform's readers are spared by is not a fault of the attack."""
    for name, run in {
        "pt": lambda content: torch.load(io.BytesIO(content), weights_only=False),
        "npy": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
        "yaml": yaml.unsafe_load,
        "json": pickle.loads,
    }.items():
        marker = tmp_path / name
        run(FORMS[name][0](marker))
        assert marker.exists(), name


def test_postscript_in_place_of_a_panel_never_reaches_a_program(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, where there is one, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "a_0000.png").write_bytes(FORMS["png"][0](tmp_path / "marker"))
    assert PanelStore(tmp_path).records([Item("a_0000", {})]) == {}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["laplace_state.pt", "best.pt"])
def test_weights_that_were_signed_and_hold_objects_are_refused_in_words(victim, tmp_path, content):
    (pattern,) = [one for one in EACH if one.endswith(content)]
    with replaced(victim, pattern, FORMS["pt"][0](tmp_path / "marker")) as path:
        run = HeadRun.open(path.parent) if content == "best.pt" else PosteriorRun.open(path.parent)
        with pytest.raises(ValueError, match="holds pickled objects, which could run code, or is damaged"):
            run.weights() if content == "best.pt" else run.state()


def test_settings_and_a_checkpoint_that_would_call_are_refused_in_words(victim, tmp_path):
    tag = r"could not determine a constructor for the tag '.*python/object/apply"
    with replaced(victim, "config.yaml", FORMS["yaml"][0](tmp_path / "marker")) as path:
        assert re.search(tag, refusal(SettingsError, load_settings, path))
    with replaced(victim, "sam.pt", FORMS["pt"][0](tmp_path / "marker")) as path:
        told = refusal(CheckpointRefused, load_frozen_sam, "toy", path, device="cpu")
        assert "pickled objects, which could run code" in told


def refusal(kind, call, *args, **options):
    with pytest.raises(kind) as refused:
        call(*args, **options)
    return str(refused.value)


def sign_pack(path):
    """Have a pack name the sizes of its shards as they are now, signed as its writer would have."""
    from sam_laplace_assets.storage.layout import digest_of_attributes

    with h5py.File(path, "r+", locking=False) as file:
        shards = path.with_name(f"{path.stem}_shards")
        file.attrs["shards"] = json.dumps(
            {name: (shards / name).stat().st_size for name in json.loads(file.attrs["shards"])}
        )
        if files.CHECK in file.attrs:
            file.attrs[files.CHECK] = digest_of_attributes(file)


@pytest.fixture
def packed(made_project, tmp_path):
    """A copy of the packs of the made project, and a file elsewhere."""
    folder = tmp_path / "packs"
    shutil.copytree(made_project.paths.packs, folder)
    with h5py.File(folder / "val.h5", "r", locking=False) as file:
        secret = hdf5_secret(tmp_path / "secret.h5", file["logits_256"])
    return folder / "val.h5", secret


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["logits_256", "mask", "n_pos"])
def test_a_pack_whose_data_lie_elsewhere_is_refused(packed, name, how):
    path, secret = packed
    of_another_file(path, name, secret, how)
    sign_pack(path)
    with pytest.raises(PackRefused, match=rf"val\.h5.*({name}|beside) (is a link|lies in another file|is made of)"):
        Pack.open(path)


@pytest.mark.parametrize("how", HOW)
def test_a_shard_whose_data_lie_elsewhere_is_refused_and_made_again(packed, how):
    path, secret = packed
    shard = min(path.with_name("val_shards").glob("*.h5"))
    of_another_file(shard, "logits_256", secret, how)
    sign_pack(path)
    pack = Pack.open(path)
    for read in (load_rows, OpenPack, rows_digests):
        with pytest.raises(ValueError, match=r"(logits_256|beside) (is a link|lies in another file|is made of)"):
            read(pack)
    assert read_slots(shard) == {}


def test_a_pack_that_names_shards_elsewhere_or_claims_what_is_not_there_is_refused(packed):
    path, _ = packed
    whole = path.read_bytes()
    with h5py.File(path, "r+", locking=False) as file:
        del file["mask_of_row"]
        file.create_dataset("mask_of_row", (10**12,), "int64", chunks=(1024,))
    with pytest.raises(PackRefused, match="mask_of_row claims 1,000,000,000,000 values and holds 0 bytes"):
        Pack.open(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs["shards"] = json.dumps({"../../secret.h5": 1})
        file.attrs.pop(files.CHECK, None)
    with pytest.raises(ValueError, match="is no plain name"):
        Pack.open(path)


OUT = ("../../../../etc/passwd", "/etc/passwd", "shapes/../../../x", "")
NO_NAMES = ("../x", "x/../../../../etc", "/etc", "..", "a/b", "x\0", "")


@pytest.mark.parametrize("name", OUT)
def test_a_table_that_names_a_picture_or_an_array_elsewhere_leads_nowhere(made_project, name):
    from sam_laplace_assets.assets.pack import read_sample

    images, masks = made_project.folder / "images", made_project.folder / "masks"
    manifest = open_manifest(made_project.paths.manifests, "train", images_root=images, masks_root=masks)
    row = dict(manifest[0].row)
    for column, read in (("image_path", Sample.image), ("mask_path", Sample.mask)):
        with pytest.raises(LeadsOut, match="is no path below"):
            read(Sample(row | {column: name}, images, masks))
    frame, _ = read_index(made_project.paths.training_index("train"), "parquet", split="train")
    for column in ("logits_256_path", "pos_map_path", "mask_path"):
        rows = frame[frame["safe_id"] == frame["safe_id"][0]].copy()
        rows[column] = name
        with pytest.raises(LeadsOut, match="is no path below"):
            read_sample(rows, masks_root=masks, project_root=made_project.root)


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_safe_id_that_is_no_plain_name_never_names_a_file(made_project, name):
    row = dict.fromkeys(SCHEMA.names) | {"safe_id": name}
    with pytest.raises(LeadsOut, match="is no plain name"):
        _ = Sample(row, made_project.folder, made_project.folder).key


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_run_or_a_pack_that_a_file_names_is_one_of_the_project(project, name):
    paths = project.paths
    rename(paths.head_pointer("train"), run_id=name)
    rename(paths.validation_pack, pack=name)
    rename(paths.posteriors / "champion.json", run_id=name)
    (paths.posteriors / "champion_history.jsonl").unlink()
    for read in (
        lambda: current_run(paths.head_pointer("train"), name="head"),
        lambda: open_validation_pack(paths.validation_pack),
        lambda: posterior_folder(None, project.settings),
    ):
        with pytest.raises(ValueError, match=r"no plain name|no path below"):
            read()
    line = json.dumps({"version": 2, "run_id": name, "decision": "d"})
    (paths.posteriors / "champion_history.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match="is no plain name"):
        require_champion(paths.posteriors)


def test_a_run_takes_no_name_that_its_state_makes_up(project):
    """A death between two renames leaves files that wait for their names; the state says which."""
    (folder,) = project.paths.checkpoints.glob("run_*")
    outside = project.folder / "precious"
    outside.with_name("precious.next").write_bytes(b"not ours")
    outside.write_bytes(b"precious")
    state = files.read_json(folder / "epoch_state.json")
    up = os.path.relpath(outside, folder)
    rename(folder / "epoch_state.json", sha256=state["sha256"] | {up: files.sha256(b"not ours")})
    project.refresh()
    assert outside.read_bytes() == b"precious"


def test_a_report_that_names_files_elsewhere_is_not_whole(project):
    folder = project.paths.report("evaluation", "test")
    for name in ("../../../../../../../../../../dev/zero", "/dev/zero"):
        rename(folder / "summary.json", sha256={name: "0" * 64})
        assert reports.read_summary(folder) is None


@pytest.mark.faults
@pytest.mark.parametrize("pattern", EACH)
def test_what_is_put_in_place_of_a_file_is_made_again_or_named(made_project, tmp_path, monkeypatch, pattern, run):
    """The whole graph over each kind of hostile file: nothing of it runs, whatever becomes of the run."""
    project = made_project.copy(tmp_path / "copy").use(monkeypatch)
    marker = tmp_path / "ran"
    path = min(project.folder.glob(pattern))
    content = FORMS[pattern.rpartition(".")[2]][0](marker)
    with run.one():
        if signed := signed_by(path):
            forge(path.parent, path.name, content, named_by=signed[0])
        else:
            path.write_bytes(content)
        (project.root / "manifests" / "val.parquet").unlink()
        told = told_by_refresh(project)
        assert not marker.exists()
        assert told == "" or path.name in told or path.parent.name in told, told


def told_by_refresh(project):
    """What `sam-laplace run` says of a project that it cannot make; nothing where it can."""
    try:
        project.refresh()
    except (RunFailed, *REFUSED) as error:
        return str(error)
    return ""
