"""Adopting the SAM cache of a split: logits as far as they are believed, maps as far as they come out the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam_laplace_assets.assets.sam import item_of, recipe_of
from sam_laplace_assets.assets.sam_answers import LOGITS, MAPS, SamSource
from sam_laplace_assets.commands.adopting import Tally, records_of
from sam_laplace_assets.commands.adopting_logits import Asking, Lacking, Recorded, Trial
from sam_laplace_assets.domain.adoption import same_map, unusable_array
from sam_laplace_assets.domain.answering import point_maps
from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.plan import Item, lacks
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.storage.adopt import CacheToAdopt, TakenSet
from sam_laplace_assets.storage.adopted import AdoptedSets
from sam_laplace_assets.storage.manifest import Sample
from sam_laplace_assets.storage.original import NotTaken
from sam_laplace_assets.storage.prompts import Prompts, points_digest
from sam_laplace_assets.storage.sam import ARRAYS

Files = dict[str, tuple[Path, str]]
"""Array name -> its file, and the SHA-256 of that."""


@dataclass(frozen=True)
class CacheOfSplit:
    """Logits and maps of one split.

    Attributes:
        asking: who knows whether logits are believed.
    """

    asking: Asking

    def adopt(self, samples: Sequence[Sample], adopted: Mapping[str, AdoptedSets]) -> tuple[Tally, Tally]:
        """Take over what can be of the samples whose prompt sets are adopted: what became of logits, and of maps."""
        adoption, split = self.asking.adoption, self.asking.split
        store = CacheToAdopt(adoption.project.sam_cache(split))
        logits, maps = Tally(split, "logits"), Tally(split, "maps")
        items = {one.key: self._item(one, adopted[one.key].sets) for one in samples if one.key in adopted}
        records, newer = records_of(store, list(items.values()))
        ours = [sample for sample in samples if sample.key in items and sample.key not in newer]
        for tally in (logits, maps):
            tally.refused |= {one.sample_id: newer[one.key] for one in samples if one.key in newer}
        lacking = {one.key: lacks(records.get(one.key), items[one.key]) for one in ours}
        for tally, kind in ((logits, LOGITS), (maps, MAPS)):
            tally.there = sum(part.endswith(kind) and part not in lacking[one.key]
                              for one in ours for part in items[one.key].parts)  # fmt: skip
        trial = self.asking.begin(ours, adopted, lacking)
        wrote = False
        for sample in adoption.counted([one for one in ours if lacking[one.key]], f"SAM cache of {split}"):
            taken = self._taken(sample, adopted[sample.key].sets, items[sample.key], lacking, trial, (logits, maps))
            wrote |= self._write(store, items[sample.key], taken)
        if wrote:
            store.leave()
        logits.notes += trial.told(logits)
        return logits, maps

    def _item(self, sample: Sample, sets: Sequence[PromptSet]) -> Item:
        """What the cache shall hold of a sample, as the asset wants it."""
        points = {sample.key: {_name(one): points_digest(one) for one in sets}}
        adoption = self.asking.adoption
        prompts = Prompts(adoption.project.prompt_sets(self.asking.split), points, False)
        return item_of(SamSource(sample, prompts, recipe_of(self.asking.model, adoption.settings)))

    def _taken(
        self, sample: Sample, sets: Sequence[PromptSet], item: Item, lacking: Lacking, trial: Trial,
        tallies: tuple[Tally, Tally],
    ) -> list[TakenSet]:  # fmt: skip
        """What can be taken over of a sample, and a line in the tallies for what cannot."""
        logits, maps = tallies
        wanted = {kind: [one for one in sets if f"{_name(one)}/{kind}" in lacking[sample.key]]
                  for kind in (LOGITS, MAPS)}  # fmt: skip
        believed = self._believed_logits(sample, wanted[LOGITS], trial, logits)
        equal = self._equal_maps(sample, wanted[MAPS], maps)
        taken = []
        for one in sets:
            parts: dict[str, Files] = {}
            facts = _facts(sample, one)
            if (recorded := believed.get(one.promptset_id)) is not None:
                parts[LOGITS] = {"logits_256": (recorded.path, recorded.sha256)}
                facts |= trial.facts(sample.key, recorded)
            if one.promptset_id in equal:
                parts[MAPS] = equal[one.promptset_id]
                facts["sigma"] = self.asking.adoption.settings.prompt_generation.gaussian_sigma
            self._keep_aside(sample, one, parts, lacking[sample.key])
            if parts:
                taken.append(_taken_set(one, parts, facts, item))
        return taken

    def _believed_logits(
        self, sample: Sample, sets: Sequence[PromptSet], trial: Trial, tally: Tally
    ) -> dict[int, Recorded]:
        """promptset_id -> logits that are adopted; the others are refused."""
        found: dict[int, Recorded] = {}
        for one in sets:
            try:
                found[one.promptset_id] = self.asking.recorded(sample, one)
            except (ValueError, OSError) as error:
                tally.refused[_title(sample, one)] = str(error)
        if self.asking.ask is None and found and not trial.obstacle:
            self.asking.about(sample, list(found.values()), trial)
        doubts = {number: trial.doubt(self.asking.model, sample.key, one) for number, one in found.items()}
        tally.refused |= {_title(sample, found[number].prompt_set): why for number, why in doubts.items() if why}
        believed = {number: one for number, one in found.items() if not doubts[number]}
        tally.adopted += len(believed)
        return believed

    def _equal_maps(self, sample: Sample, sets: Sequence[PromptSet], tally: Tally) -> dict[int, Files]:
        """promptset_id -> map files that are adopted; the others are refused."""
        found: dict[int, Files] = {}
        for one in sets:
            try:
                found[one.promptset_id] = self._maps(sample, one)
            except (ValueError, OSError) as error:
                tally.refused[_title(sample, one)] = str(error)
        tally.adopted += len(found)
        return found

    def _maps(self, sample: Sample, one: PromptSet) -> Files:
        """The map files of a prompt set. Raises `NotTaken` where they are not what the settings and points give."""
        adoption = self.asking.adoption
        sigma = adoption.settings.prompt_generation.gaussian_sigma
        found: Files = {}
        for name, ours in zip(ARRAYS[MAPS], point_maps(one, sample.size, sigma=sigma), strict=True):
            path, array, sha256 = adoption.original.array(self.asking.split, sample.key, one.promptset_id, name)
            if why := unusable_array(array):
                raise NotTaken(f"its {path.name} cannot be used: {why}")
            if not same_map(array, ours):
                raise NotTaken(f"its {path.name} is not that of its points with gaussian_sigma {sigma:g}")
            found[name] = (path, sha256)
        return found

    def _keep_aside(self, sample: Sample, one: PromptSet, parts: Mapping[str, Any], lacking: frozenset[str]) -> None:
        """Keep meta.json, which is replaced now, and what the next run replaces."""
        adoption = self.asking.adoption
        folder = adoption.original.set_folder(self.asking.split, sample.key, one.promptset_id)
        missing = {part for part in ARRAYS if f"{_name(one)}/{part}" in lacking}
        if missing:
            adoption.keep_aside(*folder, "meta.json")
        for part in missing - parts.keys():
            for array in ARRAYS[part]:
                adoption.keep_aside(*folder, f"{array}.npy")

    def _write(self, store: CacheToAdopt, item: Item, taken: Sequence[TakenSet]) -> bool:
        if not taken or not self.asking.adoption.write:
            return False
        parts = frozenset(f"{one.promptset_id:04d}/{part}" for one in taken for part in one.provenance)
        store.write(item, parts, taken)
        return True


def _taken_set(one: PromptSet, parts: Mapping[str, Files], facts: Mapping[str, Any], item: Item) -> TakenSet:
    arrays = {name: found for of in parts.values() for name, found in of.items()}
    provenance = {part: item.source.provenance(f"{_name(one)}/{part}") for part in parts}
    return TakenSet(one.promptset_id, {name: path for name, (path, _) in arrays.items()},
                    {name: sha256 for name, (_, sha256) in arrays.items()}, facts, provenance)  # fmt: skip


def _facts(sample: Sample, one: PromptSet) -> dict[str, Any]:
    """What meta.json says of any prompt set."""
    height, width = sample.size
    points = {"pos": one.pos, "neg": one.neg}
    low_res = {side: to_low_res(np.asarray(of), image_h=height, image_w=width).tolist() for side, of in points.items()}
    return {"sample_id": sample.sample_id, "k_pairs": one.k_pairs, "points": points, "points_256": low_res}


def _name(one: PromptSet) -> str:
    return f"{one.promptset_id:04d}"


def _title(sample: Sample, one: PromptSet) -> str:
    return f"{sample.sample_id}, prompt set {one.promptset_id}"
