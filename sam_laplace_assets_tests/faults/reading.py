"""What a reader gets of each asset, read to the last byte, as digests that can be compared."""

import json
from contextlib import suppress
from dataclasses import asdict

from sam_laplace_assets import io_managers
from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.storage import files
from sam_laplace_assets.storage.ledger import VERSION, Ledger
from sam_laplace_assets.storage.posterior import open_predictor
from sam_laplace_assets.storage.reports import plain, read_summary
from sam_laplace_assets.storage.rows import load_rows
from sam_laplace_assets.storage.sam import read_array
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.tables import path_of, read_note, read_table
from sam_laplace_assets_tests.storage.fakes import content

CLOCKS = ("made", "seconds", "check")
NO_LEDGER = "cannot be read"
REPORTS = {"posterior_sweep": io_managers.sweep, "evaluation": io_managers.evaluation,
           "prompt_scores": io_managers.scores, "active_prompting": io_managers.active_prompting}  # fmt: skip


def read_to_the_end(asset, partition, settings, project, manager):
    """Digest of all that a reader of one partition gets; None where the reader is told to have it made."""
    try:
        if asset in REPORTS:
            return _report(project, partition, REPORTS[asset])
        view = manager.view(settings, project, partition)
        return None if asset == "sanity_panels" else digest(timeless(plain(READERS[asset](view))))
    except (NotMade, ValueError):
        return None


def _report(project, partition, concept):
    folder, layout = io_managers._report(project, partition, concept)
    summary = read_summary(folder, layout)
    if summary is None:
        return None
    frames = {name: read_table(path_of(folder / name, layout.table_format), schema).to_dict("list")
              for name, schema in layout.tables.items()}  # fmt: skip
    return digest(timeless(plain([summary["facts"], summary["complete"], summary["data_version"], frames])))


def _rows(view):
    return [[dict(row) for row in view.rows], view.complete]


def _prompts(view):
    return [[key, [asdict(one) for one in view.read(key)]] for key in view.points]


def _cache(view):
    def arrays(one):
        return [files.sha256(read_array(view.folder / one.path(name), sha256=sha256).tobytes())
                for name, sha256 in one.sha256.items()]  # fmt: skip

    return [[key, one.promptset_id, arrays(one)] for key in view.records for one in view.sets(key)]


def _index(view):
    return [view.complete, view.frame.to_json(orient="split")]


def _pack(view):
    rows = load_rows(view)
    return [view.data_version, view.complete, view.safe_ids, rows.images.tolist(),
            *(files.sha256(one.numpy().tobytes()) for one in (rows.inputs, rows.masks))]  # fmt: skip


def _tensors(state):
    return [[name, files.sha256(value.numpy().tobytes()) if hasattr(value, "numpy") else repr(value)]
            for name, value in sorted(state.items())]  # fmt: skip


def _head(view):
    return [view.run_id, view.config, view.history, _tensors(view.weights())]


def _posterior(view):
    open_predictor(view.folder)
    return [view.run_id, view.meta, _tensors(view.state()), _tensors(view.head())]


READERS = {
    "all_samples": _rows, "manifest": _rows, "prompt_sets": _prompts, "sam_cache": _cache, "training_index": _index,
    "hdf5_pack": _pack, "validation_pack": _pack, "head_checkpoint": _head, "laplace_posterior": _posterior,
    "champion": asdict,
}  # fmt: skip


def on_disk(root):
    """Relative path -> digest of content, of all files below a root that are whole and no process' own.

    Without the times of files that ledgers hold, and without what clocks said.
    """
    found = (path for path in sorted(root.rglob("*")) if path.is_file() and files.TEMPORARY not in path.name)
    return {path.relative_to(root).as_posix(): _digest(path) for path in found if path.parent.name != "leases"}


def _digest(path):
    if ".ledger." in path.name:
        if read_note(path, version=VERSION) is None:
            return NO_LEDGER
        ledger = Ledger.load(path)
        entries = [[key, *(dict(getattr(entry.record, fact)) for fact in ("parts", "contents", "summary"))]
                   for key, entry in ledger.entries.items()]  # fmt: skip
        return digest([ledger.complete, ledger.data_version, entries])
    if path.name == "checkpoints.json":  # remembers when the checkpoint was written
        return digest(sorted(json.loads(path.read_text()).values()))
    if path.suffix in (".json", ".jsonl"):
        texts = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return digest(timeless([_json(text) for text in texts]))
    found = content(path)
    if isinstance(found, bytes):
        return files.sha256(found)
    return digest({name: files.sha256(one) if isinstance(one, bytes) else one for name, one in found.items()})


def timeless(value):
    """A JSON value without what clocks said, and without digests that this is part of."""
    if isinstance(value, dict):
        return {name: timeless(one) for name, one in value.items() if name not in CLOCKS}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def _json(text):
    """What a text says; itself where it is half of one."""
    with suppress(ValueError):
        return json.loads(text)
    return text


def files_of_items(store, items):
    """The files that finished items lie in, each with its time: none of them is to be written again."""
    if isinstance(store, io_managers.ManifestStore | io_managers.HeadStore):
        return {}  # rows of one table that is written at its end; a run's epochs, which are counted
    places = {_place(store, item) for item in items}
    below = {path for place in places for path in (place.rglob("*") if place.is_dir() else [place])}
    kept = (path for path in below if path.is_file() and not path.name.startswith(files.TEMPORARY))
    return {str(path): path.stat().st_mtime_ns for path in kept if ".ledger." not in path.name}


def _place(store, item):
    place = store.locate(item)
    if isinstance(store, io_managers.PackStore):
        return place.with_name(f"{place.stem}_shards")
    if isinstance(store, io_managers.ChampionStore):
        return place.with_name("champion_history.jsonl")
    return place
