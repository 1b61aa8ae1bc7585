"""Damage to one file of a made project, and what becomes of it: made again, refused by name, or not noticed."""

import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dagster as dg
import h5py
import numpy as np

from sam_laplace_assets.assets.graph import BY_NAME
from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.freshness import look
from sam_laplace_assets.headless import RunFailed
from sam_laplace_assets.io_managers import IO_MANAGERS
from sam_laplace_assets.storage import files, sam
from sam_laplace_assets.storage.champion import read_history
from sam_laplace_assets.storage.head import WEIGHTS
from sam_laplace_assets.storage.manifest import read_assignments
from sam_laplace_assets.storage.rows import load_rows
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets_tests.small_project import hashes

MADE_AGAIN, REFUSED, HARMLESS, UNNOTICED = "made again", "refused, naming it", "as good as before", "undetected"
DELETE, DELETE_FOLDER, PUT_BACK = "delete", "delete the folder", "put it back"
SPLIT = "train"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: in words.
        pattern: below the project root; the first file that it fits is damaged.
        asset, split: what writes it.
        read: what those who use it see of it, as text; fails in words.
        other: pattern of another file of its kind, if there is one.
        remedy: what a reader who is refused is told to do: delete the file or its folder, or put a copy back.
    """

    name: str
    pattern: str
    asset: str
    split: str | None
    read: Callable[[Any], str]
    other: str = ""
    remedy: str = DELETE

    def path(self, root):
        """The file."""
        return sorted(root.glob(self.pattern))[0]

    def foreign(self, root):
        """Another file of its kind."""
        return next(path for path in sorted(root.glob(self.other)) if path != self.path(root))


def view(project, asset, split):
    """What the next asset gets to see."""
    manager = IO_MANAGERS[BY_NAME[asset].get_io_manager_key_for_asset_key(dg.AssetKey(asset))]
    return manager.view(project.settings, project.paths, split or "")


def rows_of_all(project):
    return digest(list(view(project, "all_samples", None).rows))


def rows_of_manifest(project):
    return digest(list(view(project, "manifest", SPLIT).rows))


def assigned(project):
    return digest({key: one.split for key, one in read_assignments(project.paths.manifests).items()})


def prompts(project):
    found = view(project, "prompt_sets", SPLIT)
    return digest([str(found.read(key)) for key in found.points])


def cache(project):
    """All arrays of the cache, as the pack reads them, and all that the index learns of them."""
    found, told = view(project, "sam_cache", SPLIT), []
    for key in found.records:
        for one in found.sets(key):
            paths = [found.folder / one.path(array) for array in one.sha256]
            arrays = sam.read_arrays(paths, sha256=list(one.sha256.values()))
            told.append([str(one), files.sha256(arrays.tobytes())])
    return digest(told)


def index(project):
    found = view(project, "training_index", SPLIT)
    return digest([found.complete, found.frame.to_json()])


def pack(project):
    found = view(project, "hdf5_pack", SPLIT)
    rows = load_rows(found)
    arrays = [rows.inputs, rows.masks]
    described = [found.split, found.data_version, found.complete, found.safe_ids]
    numbers = [one.tolist() for one in (found.images, found.n_pos, found.n_neg)]
    return digest([described, numbers, [files.sha256(one.numpy().tobytes()) for one in arrays]])


def validation(project):
    found = view(project, "validation_pack", None)
    return digest([found.path.name, found.data_version])


def head(project):
    found = view(project, "head_checkpoint", SPLIT)
    saved = [files.file_sha256(found.folder / name) for name in WEIGHTS]
    history = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in found.history]
    return digest([found.run_id, found.best_sha256, found.config, history, saved])


def posterior(project):
    found = view(project, "laplace_posterior", SPLIT)
    saved = [files.file_sha256(found.folder / name) for name in ("laplace_state.pt", "laplace_config.yaml")]
    return digest([found.run_id, found.meta, saved])


def champion(project):
    found = view(project, "champion", None)
    return digest([str(found), read_history(project.paths.posteriors)])


def half(kind, path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(kind, path):
    path.write_bytes(b"")


def missing(kind, path):
    path.unlink()


def foreign(kind, path, root):
    shutil.copyfile(kind.foreign(root), path)


def nan(kind, path):
    """A value that is not finite, in a file that is whole by its own format."""
    if path.suffix == ".npy":
        array = np.load(path)
        array[3, 3] = np.nan
        np.save(path, array)
    else:
        with h5py.File(path, "r+", locking=False) as file:
            file["logits_256"][0, 3, 3] = np.nan


def flip(path, seed):
    """One bit of a file at a place that is drawn, its size and time as they were: what a disk does unseen."""
    before, content = path.stat(), bytearray(path.read_bytes())
    stream = np.random.default_rng([seed, len(content)])
    content[stream.integers(len(content))] ^= 1 << int(stream.integers(8))
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@dataclass(frozen=True)
class Patient:
    """A project that is damaged, and the sound one that it is brought back to."""

    project: Any
    sound: Any

    def restore(self):
        """Have all files as they were, their times too; what Dagster remembers as well."""
        ours, theirs = self.project.folder, self.sound.folder
        for path in sorted(theirs.rglob("*")):
            twin = ours / path.relative_to(theirs)
            if path.is_dir():
                twin.mkdir(exist_ok=True)
            elif not twin.exists() or _state(twin) != _state(path):
                shutil.copy2(path, twin)
        for path in sorted(ours.rglob("*"), reverse=True):
            if not (theirs / path.relative_to(ours)).exists():
                path.rmdir() if path.is_dir() else path.unlink()

    def restore_file(self, kind):
        """Have one file as it was."""
        path = kind.path(self.sound.root)
        shutil.copy2(path, self.project.root / path.relative_to(self.sound.root))

    def place(self, kind):
        """The file that is damaged."""
        return self.project.root / kind.path(self.sound.root).relative_to(self.sound.root)

    def fresh(self, kind):
        """Why what writes it would run, or what it waits for; empty if it is taken for current."""
        with self.project.instance() as instance:
            return look(BY_NAME[kind.asset], kind.split or "", self.project.settings, instance).why

    def read(self, kind):
        """What a reader sees, and what he is told if he is refused."""
        try:
            return kind.read(self.project), ""
        except (ValueError, NotMade, OSError) as error:
            return None, str(error)


def _state(path):
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def became_of_a_flip(patient, kind, value):
    """What becomes of a flipped bit, without making anything again."""
    try:
        return _became_of_a_flip(patient, kind, value)
    except Exception as error:
        return f"{UNNOTICED}: {type(error).__name__} without a name: {error}"


def _became_of_a_flip(patient, kind, value):
    why = patient.fresh(kind)
    if why and not why.startswith("waits"):
        return MADE_AGAIN
    found, told = patient.read(kind)
    told = why or told
    if told:
        return REFUSED if names_it(kind, patient, told) else f"{UNNOTICED}: refused without a name: {told}"
    return HARMLESS if found == value else UNNOTICED


def names_it(kind, patient, told):
    """Whether words name the file, and say what to do."""
    place = patient.place(kind)
    remedies = ("Delete", "delete", "Mend", "Put ", "Materialise", "Run again", "Upgrade", "Make ")
    return (place.name in told or place.stem in told) and any(remedy in told for remedy in remedies)


def became_of(patient, kind, value):
    """What becomes of a damage, all the way: found, made again or refused by name, and the end as undisturbed."""
    version, told = patient.sound.version(kind.asset, kind.split), ""
    name = f"{kind.asset}[{kind.split}]" if kind.split else kind.asset
    try:
        ran = patient.project.refresh()
    except RunFailed as error:
        ran, told = [], str(error)
    if not ran and not told:
        told = patient.read(kind)[1]
    if told:
        assert names_it(kind, patient, told), told
        do_as_told(patient, kind)
        ran = patient.project.refresh()
    assert not [one for one in ran if one != name and made(patient.project, one)], ran
    found, refused = patient.read(kind)
    assert not refused
    if not ran and not told:
        return HARMLESS if found == value else UNNOTICED
    assert found == value, f"{kind.name} was made again to something else"
    assert patient.project.version(kind.asset, kind.split) == version
    assert patient.project.refresh() == []
    return REFUSED if told else MADE_AGAIN


def made(project, name):
    """How much a run of `asset[partition]` made: what follows a damaged file is looked at again, and kept."""
    asset, _, split = name.rstrip("]").partition("[")
    told = project.metadata(asset, split or None)
    return next(number for what, number in told.items() if what.endswith(" made"))


def do_as_told(patient, kind):
    """What the words that refuse a file say."""
    if kind.remedy == DELETE_FOLDER:
        shutil.rmtree(patient.place(kind).parent)
    elif kind.remedy == PUT_BACK:
        patient.restore_file(kind)
    else:
        patient.place(kind).unlink(missing_ok=True)


def in_words(counted):
    """`made again 4, refused, naming it 16`."""
    return "; ".join(f"{outcome}: {number}" for outcome, number in sorted(counted.items()))


def same_files(patient, *, but=()):
    """Whether the project holds what the sound one holds."""
    ours, theirs = hashes(patient.project.root), hashes(patient.sound.root)
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)} <= set(but)


def nothing_finite(state):
    """A state dict whose first value is no number."""
    import torch

    saved = {name: tensor.clone() for name, tensor in state.items()}
    next(iter(saved.values())).view(-1)[0] = float("nan")
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return buffer.getvalue()
