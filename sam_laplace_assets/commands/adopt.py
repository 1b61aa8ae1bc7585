"""`sam-laplace adopt`: take over a project root of the original scripts, and say what could not be."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import dagster as dg

from sam_laplace_assets.assets.manifest import plan_all_samples
from sam_laplace_assets.commands.adopting import Adoption, PromptsOfSplit, Tally, Tell, in_split
from sam_laplace_assets.commands.adopting_cache import CacheOfSplit
from sam_laplace_assets.commands.adopting_logits import Asking
from sam_laplace_assets.domain.manifest import PARTITION_ROLES, safe_id
from sam_laplace_assets.domain.plan import lacks, missing
from sam_laplace_assets.resources.sam import SamModel
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage.lease import held
from sam_laplace_assets.storage.manifest import (
    Assignment,
    ManifestStore,
    Row,
    Sample,
    read_assignments,
    read_rows,
    write_assignments,
)
from sam_laplace_assets.storage.materialise import materialise
from sam_laplace_assets.storage.original import ASIDE, Original

SHOWN = 10
FILES_BETWEEN_LINES = 1000
HOLDER = "sam-laplace adopt"
WRITTEN = ("prompt_sets", "sam_cache")


def adopt_project(old: Path, *, ask: int | None, dry_run: bool, verbose: bool, tell: Tell) -> list[Tally]:
    """Take over what an original's project root holds into the project of the settings in force.

    Args:
        old: the original's project root; it may be the settings' own.
        ask: how many prompt sets of each split SAM is asked about again; None for all.
        dry_run: look, ask and tell, but write nothing.
        verbose: name all that is not adopted.
        tell: hears of the progress, and of the outcome.

    Returns:
        What became of each kind of thing in each split.

    Raises:
        NotOriginal: `old` is no such root.
        ClickException: there are no settings, or their checkpoint is not there.
        NewerFormat: the project was written by a newer version of this package.
    """
    adoption = Adoption(Original(old.absolute()), own_settings(), not dry_run, tell)
    given = adoption.original.splits()
    with contextlib.ExitStack() as stack:
        model = SamModel(adoption.settings.sam, _memory(adoption, stack))
        require_checkpoint(model)
        if adoption.write:
            stack.enter_context(_alone(adoption, "all_samples", ""))
        keep_tables_aside(adoption)
        before = read_assignments(adoption.project.manifests).keys()
        rows = scan(adoption, given)
        tallies: list[Tally] = []
        for split in PARTITION_ROLES:
            tally, names = in_split(split, given, rows)
            tally.there = sum(name in before for name in names)
            tally.adopted = len(names) - tally.there
            for name in tally.refused:
                adoption.keep_sample_aside(split, safe_id(name))
            tallies += [tally, *_adopt_split(adoption, split, [rows[name] for name in names], model, ask)]
    for line in describe(tallies, adoption, verbose=verbose):
        tell(line)
    return tallies


def own_settings() -> Settings:
    """The settings in force, which are not the demo's. Raises `ClickException`."""
    settings = load_settings()
    if settings.is_demo:
        raise click.ClickException(
            f"There is no config.yaml in {Path.cwd()}. That of the original scripts loads as it is: copy it here, and "
            "set data.project_root to where outputs shall go."
        )
    return settings


def require_checkpoint(model: SamModel) -> None:
    """Refuse settings whose checkpoint is not there: what SAM said cannot be told apart without it."""
    try:
        _ = model.identity
    except dg.Failure as error:
        raise click.ClickException(str(error.description)) from error


def _memory(adoption: Adoption, stack: contextlib.ExitStack) -> Path:
    """Where SHA-256s of checkpoints are remembered; nowhere for long, if nothing is to be written."""
    if adoption.write:
        return adoption.project.checkpoint_digests
    return Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkpoints.json"


def _alone(adoption: Adoption, asset: str, split: str) -> contextlib.AbstractContextManager[None]:
    """Wait until no run writes a partition, and keep others from it."""
    name = f"{asset}[{split}]" if split else asset
    return held(adoption.project.lease(asset, split), holder=HOLDER,
                waiting=lambda holder: adoption.tell(f"{name} is being written by {holder}; waiting."))  # fmt: skip


def keep_tables_aside(adoption: Adoption) -> None:
    """Keep the original's manifests, indices and packs that ours may replace."""
    for folder in (("manifests",), ("training_data", "no_image")):
        for path in sorted(adoption.original.root.joinpath(*folder).glob("*")):
            noted = path.with_name(f"{path.name}.json").exists()
            if path.suffix in (".csv", ".h5") and not noted and not _is_pack_of_ours(path):
                adoption.keep_aside(*folder, path.name)


def _is_pack_of_ours(path: Path) -> bool:
    import h5py

    if path.suffix != ".h5":
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("format") == "pack")
    except OSError:
        return False


def _files(adoption: Adoption, done: int, total: int) -> None:
    """Tell now and then how many files were read."""
    if done and done % FILES_BETWEEN_LINES == 0:
        adoption.tell(f"all_samples: {done:,} of {total:,} files")


def scan(adoption: Adoption, given: Mapping[str, str]) -> dict[str, Row]:
    """Today's samples, in the splits that the original gave them: sample_id -> row, refused ones too.

    A sample that this project has given a split before stays there.
    """
    place = adoption.project.manifests
    kept = read_assignments(place)
    remembered = {name: Assignment(split, "") for name, split in given.items()} | kept
    try:
        plan, store = plan_all_samples(adoption.settings), ManifestStore(place, "all_samples")
    except dg.Failure as error:
        raise click.ClickException(str(error.description)) from error
    if not adoption.write:
        records = store.records(plan.items)
        found = [plan.make(item, frozenset(item.parts)) if lacks(records.get(item.key), item)
                 else records[item.key].summary for item in plan.items]  # fmt: skip
        rows, _ = plan.finish(found, remembered)
        return {row["sample_id"]: row for row in rows}
    if remembered != kept:
        write_assignments(place, remembered)
    records = store.records(plan.items)
    if missing(plan, records) or not store.finished(plan, records):
        materialise(plan, store, progress=lambda done, failed, total, unit: _files(adoption, done, total))
    return {row["sample_id"]: row for row in read_rows(place, "all_samples")}


def _adopt_split(
    adoption: Adoption, split: str, rows: Sequence[Row], model: SamModel, ask: int | None
) -> tuple[Tally, ...]:
    """What became of prompt sets, logits and maps of the samples of one split."""
    data = adoption.settings.data
    samples = [Sample(row, data.images_root, data.masks_root) for row in rows]
    with contextlib.ExitStack() as stack:
        for asset in WRITTEN if adoption.write else ():
            stack.enter_context(_alone(adoption, asset, split))
        prompts, adopted = PromptsOfSplit(adoption, split).adopt(samples)
        logits, maps = CacheOfSplit(Asking(adoption, split, model, ask)).adopt(samples, adopted)
    return prompts, logits, maps


def describe(tallies: Sequence[Tally], adoption: Adoption, *, verbose: bool) -> Iterator[str]:
    """A table of what was adopted, what was not and why, and what was proved of it."""
    yield f"{'split':<8}{'what':<14}{'adopted':>10}{'there':>10}{'not adopted':>13}"
    for tally in tallies:
        yield f"{tally.split:<8}{tally.what:<14}{_counts(tally)}"
    for tally in tallies:
        yield from _refused(tally, None if verbose else SHOWN)
    yield from (note for tally in tallies for note in tally.notes)
    yield from _left(adoption)
    adopted = sum(tally.adopted for tally in tallies)
    if not adopted:
        yield "There is nothing to adopt that was not adopted before. To make what is missing: sam-laplace run"
    elif adoption.write:
        yield "What is not adopted, indices and packs are made by: sam-laplace run"
    else:
        yield "Nothing was written. To adopt it, leave out --dry-run."


def _counts(tally: Tally) -> str:
    return f"{tally.adopted:>10,}{tally.there:>10,}{len(tally.refused):>13,}"


def _refused(tally: Tally, shown: int | None) -> Iterator[str]:
    if not tally.refused:
        return
    yield f"Not adopted, {tally.what} of {tally.split}:"
    lines = [f"  {name}: {why}" for name, why in tally.refused.items()]
    yield from lines[:shown]
    if shown is not None and len(lines) > shown:
        yield f"  and {len(lines) - shown:,} more; --verbose names all"


def _left(adoption: Adoption) -> Iterator[str]:
    """What is not adopted whatever it holds."""
    if runs := adoption.original.runs():
        yield (f"Not adopted, heads and posteriors: {', '.join(runs)}. They do not say which data and settings made "
               "them; they are trained and fitted again.")  # fmt: skip
    if adoption.write and adoption.in_place:
        yield f"Files of the original that ours replace are kept below {ASIDE}/ in the project root."
