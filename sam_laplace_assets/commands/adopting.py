"""What adopting shares: where from, where to, what became of each thing, and the prompt sets of a split."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sam_laplace_assets.assets.prompts import Clicks, Pairs, drawing, source_of
from sam_laplace_assets.domain.adoption import misplaced_points
from sam_laplace_assets.domain.geometry import resize_nearest
from sam_laplace_assets.domain.plan import Item, Record, digest, lacks
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.settings import Settings
from sam_laplace_assets.storage.adopt import PromptsToAdopt, keep_aside
from sam_laplace_assets.storage.adopted import Adopted, AdoptedSets, read_adopted, write_adopted
from sam_laplace_assets.storage.files import NewerFormat
from sam_laplace_assets.storage.manifest import Sample
from sam_laplace_assets.storage.original import NotTaken, Original
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.prompts import PART
from sam_laplace_assets.storage.store import FileStore

Tell = Callable[[str], None]
SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Tally:
    """What became of one kind of thing in one split.

    Attributes:
        split: its name.
        what: the kind.
        adopted: how many are taken over now.
        there: how many were there already.
        refused: name -> why it is not taken over.
        notes: what was proved, and what is believed.
    """

    split: str
    what: str
    adopted: int = 0
    there: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Adoption:
    """From where to where, and whether anything is written."""

    original: Original
    settings: Settings
    write: bool
    tell: Tell

    @property
    def project(self) -> Project:
        """What is adopted into."""
        return Project.of(self.settings)

    @property
    def in_place(self) -> bool:
        """Whether the original's files lie where ours go."""
        return self.original.root.resolve() == self.project.root.resolve()

    def keep_aside(self, *parts: str) -> None:
        """Keep a file of the original that one of ours replaces, now or in the next run, or all files of a folder."""
        if not (self.write and self.in_place):
            return
        path = self.original.root.joinpath(*parts)
        for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
            keep_aside(self.original.root, one)

    def keep_sample_aside(self, split: str, key: str) -> None:
        """Keep what the next run replaces of a sample that is not adopted, or `gc` takes for ours, being gone."""
        self.keep_aside("prompt_sets", split, f"{key}.json")
        self.keep_aside("sam_precompute", split, key)

    def counted(self, samples: Sequence[Sample], what: str) -> Iterator[Sample]:
        """The samples, one after another; tells now and then how many are done."""
        told = time.monotonic()
        for at, sample in enumerate(samples):
            if time.monotonic() - told > SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                self.tell(f"{what}: {at:,} of {len(samples):,} samples")
            yield sample


@dataclass(frozen=True)
class PromptsOfSplit:
    """Prompt sets of one split that are held against its masks and kept as they are."""

    adoption: Adoption
    split: str

    def adopt(self, samples: Sequence[Sample]) -> tuple[Tally, dict[str, AdoptedSets]]:
        """Take over what can be; what became of it, and key -> the sets of each sample whose sets are adopted."""
        folder, recipe = self.adoption.project.prompt_sets(self.split), self._recipe()
        known, tally = read_adopted(folder).under(recipe.provenance), Tally(self.split, "prompt sets")
        store = PromptsToAdopt(folder)
        as_ever = [_item(sample, recipe, Adopted()) for sample in samples]
        here, _ = records_of(store, as_ever)  # a newer file is refused when it is read
        drawn = {item.key for item in as_ever if not lacks(here.get(item.key), item)}
        taken: dict[str, AdoptedSets] = {}
        for sample in self.adoption.counted(samples, f"prompt sets of {self.split}"):
            entry = known.samples.get(sample.key)
            if entry is not None and entry.fit(sample.row):
                taken[sample.key] = entry
                continue
            try:
                if sample.key in drawn:
                    raise NotTaken("its prompt sets were drawn in this project before")
                taken[sample.key] = self._judged(sample, recipe)
            except (ValueError, OSError) as error:
                tally.refused[sample.sample_id] = str(error)
        adopted = Adopted(recipe.provenance, {**known.samples, **taken})
        if self.adoption.write and adopted.samples != known.samples:
            write_adopted(folder, adopted)
        self._write(store, [sample for sample in samples if sample.key in taken], recipe, adopted, tally)
        for sample in samples:
            if sample.key not in taken and sample.key not in drawn:
                self.adoption.keep_sample_aside(self.split, sample.key)
        return tally, taken

    def _recipe(self) -> Pairs | Clicks:
        prompting = self.adoption.settings.prompt_generation
        return drawing(prompting, count=prompting.count(self.split))

    def _judged(self, sample: Sample, recipe: Pairs | Clicks) -> AdoptedSets:
        """The sample's prompt sets. Raises `NotTaken` or another `ValueError`: it says why they are not adopted."""
        sets = self.adoption.original.prompt_sets(self.split, sample.key, size=sample.size)
        if isinstance(recipe, Clicks):
            raise NotTaken("the settings ask for interactive prompt sets, these are pairs")
        require_recipe(sets, recipe, split=self.split)
        if why := misplaced_points(sets, resize_nearest(sample.mask(), *sample.size)):
            raise NotTaken(why)
        return AdoptedSets.of(sets, mask_digest=sample.row["mask_digest"], size=sample.size)

    def _write(
        self, store: PromptsToAdopt, samples: Sequence[Sample], recipe: Pairs | Clicks, adopted: Adopted,
        tally: Tally,
    ) -> None:  # fmt: skip
        """Have a JSON file of ours for each adopted sample."""
        items = [_item(sample, recipe, adopted) for sample in samples]
        records = store.records(items)
        wrote = False
        for item in items:
            sets = adopted.samples[item.key].sets
            if not lacks(records.get(item.key), item):
                tally.there += len(sets)
                continue
            tally.adopted += len(sets)
            if self.adoption.write:
                wrote = True
                self.adoption.keep_aside("prompt_sets", self.split, f"{item.key}.json")
                store.write(item, frozenset(item.parts), sets)
        if wrote:
            store.leave()


def records_of(store: FileStore, items: Sequence[Item]) -> tuple[dict[str, Record], dict[str, str]]:
    """What is there of some items; and of those with a file of a newer format, what is to be done."""
    records: dict[str, Record] = {}
    newer: dict[str, str] = {}
    for item in items:
        try:
            records |= store.records([item])
        except NewerFormat as error:
            newer[item.key] = str(error)
    return records, newer


def _item(sample: Sample, recipe: Pairs | Clicks, adopted: Adopted) -> Item:
    source = source_of(sample, recipe, adopted)
    return Item(sample.key, {PART: digest(source.provenance)}, source)


def require_recipe(sets: Sequence[PromptSet], recipe: Pairs, *, split: str) -> None:
    """Refuse prompt sets that are not as many, or not of as many points, as the settings ask for. Raises `NotTaken`."""
    if len({one.promptset_id for one in sets}) != len(sets):
        raise NotTaken("two of its prompt sets have one number")
    if len(sets) != recipe.count:
        raise NotTaken(f"it has {len(sets)} prompt sets, prompt_generation.num_promptsets_{split} is {recipe.count}")
    for one in sets:
        if len(one.pos) != len(one.neg) or not recipe.min_pairs <= one.k_pairs <= recipe.max_pairs:
            raise NotTaken(
                f"its prompt set {one.promptset_id} has {len(one.pos)} positive and {len(one.neg)} negative points, "
                f"the settings ask for {recipe.min_pairs} to {recipe.max_pairs} pairs"
            )


def in_split(split: str, given: Mapping[str, str], rows: Mapping[str, Mapping[str, Any]]) -> tuple[Tally, list[str]]:
    """Which samples that the original had in a split stand there, and why the others do not."""
    tally, there = Tally(split, "samples"), []
    for name in sorted(name for name, its in given.items() if its == split):
        if why := _why_not_there(split, rows.get(name)):
            tally.refused[name] = why
        else:
            there.append(name)
    return tally, there


def _why_not_there(split: str, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "its image and its mask are gone; the split is remembered should they return"
    if not row["valid"]:
        return f"{row['reason']}"
    return "" if row["split"] == split else f"it stands in split {row['split']} of this project"
