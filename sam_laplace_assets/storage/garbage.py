"""What nothing points to any more, and how it goes: whole, in one rename, so that no reader takes half of it for all.

Of a split whose manifest is complete (a split without one is left alone):
  samples       that neither manifest, ledgers nor index name: their prompt sets, their cache, their panels
  prompt sets   that neither the completed ledger of the cache nor the index names, and panels that show one
  shards        that a complete pack does not name; a younger one than the pack may be what an interrupted run goes on
                from, and stays for a day
Heads and posteriors stay if they are current, hold the title or would get it back, are among the newest finished ones
of their training split, or are the head of a posterior that stays. A half-done one stays for a day, as do
files that a writer has begun: an interrupted run may go on with the one, and still be writing the other.

Nothing else is touched: images, masks, Dagster's home, the models that MLflow has registered, and whatever lies among
ours under a name, or in a form, that is not ours. Links are not followed.
"""

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sam_laplace_assets.domain.plan import Item
from sam_laplace_assets.storage import embeddings, files, panels, sam
from sam_laplace_assets.storage.in_use import RunKind, RunUse, SplitUse, split_of
from sam_laplace_assets.storage.ledger import Entry, Ledger
from sam_laplace_assets.storage.pack import SHARD
from sam_laplace_assets.storage.project import Project

CONDEMNED = f"{files.TEMPORARY}gc-"
BY_SAMPLE = ("prompt_scores", "active_prompting")
FOLDERS = ("manifests", "prompt_sets", "sam_precompute", "training_data", "checkpoints", "laplace", "reports")
SET = re.compile(r"promptset_(\d{4,})")
POINTERS = re.compile(r"current-.*\.json|champion\.json|champion_history\.jsonl")


@dataclass(frozen=True)
class Garbage:
    """One file or folder that nothing points to.

    Attributes:
        kind: what it is, for a table.
        path: where it lies.
        bytes: what its files hold.
        why: what became of whatever needed it.
    """

    kind: str
    path: Path
    bytes: int
    why: str


def garbage(project: Project, *, splits: Sequence[str], keep_runs: int) -> list[Garbage]:
    """All that nothing points to; posteriors come before heads, so that none outlives its head.

    Args:
        project: where to look.
        splits: those whose samples, prompt sets and shards are looked at.
        keep_runs: newest finished heads, and posteriors, of each training split that stay whatever points to them.

    Raises:
        UseUnclear, ValueError: it cannot be told what is in use; names the file that is damaged.
    """
    found = [one for one in _findings(project, splits, keep_runs) if isinstance(one, Garbage)]
    return found + list(_leftovers(project.root, FOLDERS, {str(one.path) for one in found}))


def unknown(project: Project, *, splits: Sequence[str], keep_runs: int) -> list[Path]:
    """What lies among ours and is not ours, or holds what is not: links, foreign names, folders with foreign files."""
    return [one for one in _findings(project, splits, keep_runs) if isinstance(one, Path)]


def remove(one: Garbage) -> None:
    """Let it vanish whole, in one rename, then delete it; what a kill in between leaves is garbage of its own."""
    condemned = one.path
    with contextlib.suppress(FileNotFoundError):  # another one may be removing it
        if not condemned.name.startswith(CONDEMNED):
            condemned = one.path.rename(one.path.with_name(f"{CONDEMNED}{uuid.uuid4().hex}"))
        if condemned.is_dir() and not condemned.is_symlink():
            shutil.rmtree(condemned)
        else:
            condemned.unlink()


def sign_again(folder: Path) -> None:
    """Have the ledger of a cache know the samples that lost prompt sets, or every look would read all their files."""
    ledger, store = Ledger.load(sam.ledger_path(folder)), sam.SamStore(folder)
    signed = {key: store.signature(key) for key in ledger.entries}
    changed = [key for key, now in signed.items() if now and now != ledger.entries[key].signature]
    same = [key for key in changed if _holds_what_it_should(store, key, ledger.entries[key])]
    ledger.entries |= {key: Entry(signed[key], ledger.entries[key].record) for key in same}
    if same:
        ledger.save()


def _holds_what_it_should(store: sam.SamStore, key: str, entry: Entry) -> bool:
    record = store.read_record(key)
    return record is not None and record.of(Item(key, entry.record.parts)) == entry.record


Finding = Garbage | Path


def _findings(project: Project, splits: Sequence[str], keep_runs: int) -> Iterator[Finding]:
    """Garbage, and paths that are left alone since they are not ours."""
    for split in splits:
        if (use := SplitUse.of(project, split)) is not None:
            yield from _of_split(project, use)
    runs = RunUse.of(project, keep_runs=keep_runs)
    yield from _runs(project, RunKind.posteriors(project), runs.posteriors, runs.splits)
    yield from _runs(project, RunKind.heads(project), runs.heads, runs.splits)


def _of_split(project: Project, use: SplitUse) -> Iterator[Finding]:
    pack = project.pack(use.split)
    places = {project.prompt_sets(use.split): _prompts, project.sam_cache(use.split): _cache,
              project.panels(use.split): _panel, pack.with_name(f"{use.split}_shards"): _shard,
              **{project.report(name, use.split) / "samples": _sample for name in BY_SAMPLE}}  # fmt: skip
    for folder, look in places.items():
        for path in _listed(project, folder):
            yield from (path,) if path == folder else look(path, use)


def _listed(project: Project, folder: Path) -> Iterator[Path]:
    """What lies in a folder, killed writers' leftovers aside; the folder itself if a link leads to it."""
    if not folder.is_dir():
        return
    if folder.resolve() != project.root.resolve() / folder.relative_to(project.root):
        yield folder
        return
    yield from (path for path in sorted(folder.iterdir()) if not path.name.startswith(files.TEMPORARY))


def _prompts(path: Path, use: SplitUse) -> Iterator[Finding]:
    if not _is_file(path) or path.suffix != ".json":
        yield path
    elif path.stem not in use.samples:
        yield _garbage("prompt sets", path, _gone(use)) if _holds_prompts(path) else path


def _sample(path: Path, use: SplitUse) -> Iterator[Finding]:
    """What a report keeps of one sample."""
    if not _is_file(path) or path.suffix != ".json":
        yield path
    elif path.stem not in use.samples:
        ours = _format_of(path) in {f"{name}_sample" for name in BY_SAMPLE}
        yield _garbage("samples of reports", path, _gone(use)) if ours else path


def _cache(path: Path, use: SplitUse) -> Iterator[Finding]:
    """A sample's folder, as a whole if it holds nothing but its prompt sets and its embedding."""
    if not _is_folder(path):
        yield path
        return
    there = [child for child in sorted(path.iterdir()) if not child.name.startswith(files.TEMPORARY)]
    if path.name not in use.samples and all(_is_set(child) or _is_embedding(child) for child in there):
        yield _garbage("SAM outputs", path, _gone(use))
        return
    for child in (child for child in there if not _is_embedding(child) or path.name not in use.samples):
        number = SET.fullmatch(child.name)
        if number is None or not use.needs(path.name, int(number[1])):
            why = "its prompt set is no longer wanted" if path.name in use.samples else _gone(use)
            ours = _is_set(child) or _is_embedding(child)
            yield _garbage("SAM outputs", child, why) if ours else child


def _panel(path: Path, use: SplitUse) -> Iterator[Finding]:
    key, _, number = path.stem.rpartition("_")
    if not _is_file(path) or path.suffix != ".png" or not number.isdecimal():
        yield path
    elif not use.needs(key, int(number)):
        yield _garbage("panels", path, "it shows what is gone") if _is_panel(path) else path


def _shard(path: Path, use: SplitUse) -> Iterator[Finding]:
    if not _is_file(path) or not SHARD.fullmatch(path.name):
        yield path
    elif not use.needs_shard(path):
        yield _garbage("shards", path, f"{use.split}.h5 does not name it")


def _runs(project: Project, kind: RunKind, kept: Collection[str], splits: frozenset[str]) -> Iterator[Finding]:
    known = {kind.path(run_id): run_id for run_id in kind.run_ids()}
    for path in _listed(project, kind.folder):
        if (run_id := known.get(path)) is None:
            yield from () if POINTERS.fullmatch(path.name) else (path,)
        elif run_id not in kept:
            yield from _run(path, run_id, kind, splits)


def _run(path: Path, run_id: str, kind: RunKind, splits: frozenset[str]) -> Iterator[Finding]:
    if split_of(run_id, splits) is None or not _holds_only(path, kind.names):
        yield path
    elif kind.read(run_id) is not None:
        yield _garbage(kind.name, path, "neither in use nor among the newest")
    elif _is_untouched(path):
        yield _garbage(kind.name, path, "half done, and not written to for a day")


def _leftovers(folder: Path, inside: Collection[str] | None, known: Collection[str]) -> Iterator[Garbage]:
    """What killed writers left below a folder, all of it or only some of its folders, beside what is garbage anyway."""
    with os.scandir(folder) if folder.is_dir() else contextlib.nullcontext(()) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            if entry.path in known or entry.is_symlink():
                continue
            if entry.name.startswith(CONDEMNED):
                yield _garbage("leftovers", Path(entry.path), "gc was stopped while it removed this")
            elif entry.name.startswith(files.TEMPORARY):
                if _is_untouched(Path(entry.path)):
                    yield _garbage("leftovers", Path(entry.path), "a writer that was killed left it")
            elif entry.is_dir() and (inside is None or entry.name in inside):
                yield from _leftovers(Path(entry.path), None, known)


def _garbage(kind: str, path: Path, why: str) -> Garbage:
    return Garbage(kind, path, sum(one.lstat().st_size for one in _tree(path) if not one.is_dir()), why)


def _gone(use: SplitUse) -> str:
    return f"its sample is no longer in {use.split}"


def _tree(path: Path) -> list[Path]:
    """A path and all that is below it; links are not followed."""
    return [path, *(path.rglob("*") if _is_folder(path) else ())]


def _is_untouched(path: Path) -> bool:
    return all(files.is_old(one) for one in _tree(path))


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_set(path: Path) -> bool:
    return bool(SET.fullmatch(path.name)) and _is_folder(path) and _holds_only(path, sam.NAMES)


def _is_embedding(path: Path) -> bool:
    return path.name == embeddings.NAME and _is_file(path)


def _holds_only(folder: Path, names: Collection[str]) -> bool:
    """Whether all that lies in a folder are files of ours, or what a killed writer left of one."""
    ours = (path.name in names or path.name.startswith(files.TEMPORARY) for path in folder.iterdir())
    return all(ours) and all(_is_file(path) for path in folder.iterdir())


def _holds_prompts(path: Path) -> bool:
    return _format_of(path) == "prompt_sets"


def _format_of(path: Path) -> str:
    """What a JSON file says that it is; empty if it says nothing."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return str(files.read_json(path).get("format", ""))
    return ""


def _is_panel(path: Path) -> bool:
    from PIL import Image

    with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(path, formats=panels.FORMATS) as picture:
        return bool(picture.info.get("format") == "panel")
    return False
