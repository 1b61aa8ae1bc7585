"""Whether logits that the original scripts recorded are adopted: SAM is asked again about some, or all, of them."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np

from sam_laplace_assets.assets.sam_answers import LOGITS
from sam_laplace_assets.commands.adopting import Adoption, Tally
from sam_laplace_assets.domain.adoption import disagreement, largest_difference, unusable_array
from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.resources.sam import SamModel
from sam_laplace_assets.storage.adopted import AdoptedSets
from sam_laplace_assets.storage.manifest import Sample
from sam_laplace_assets.storage.original import NotTaken, SaidOfSet

PROVED, BELIEVED = "asked of SAM again", "believed"
Lacking = Mapping[str, frozenset[str]]
"""Sample key -> parts of the cache that are lacking, as `0003/logits`."""


@dataclass(frozen=True)
class Recorded:
    """Logits of the original: the prompt set, what meta.json says, and the file."""

    prompt_set: PromptSet
    said: SaidOfSet
    path: Path
    logits: np.ndarray
    sha256: str


@dataclass(frozen=True)
class Verdict:
    """What SAM of today says to recorded logits: why it would not have given them, or nothing; and its own answer."""

    against: str
    branch: int
    predicted_ious: tuple[float, ...]


@dataclass
class Trial:
    """What is known of the recorded logits of one split.

    Attributes:
        verdicts: (sample key, promptset_id) -> what SAM says, of those that it was asked about.
        largest: how far logits that agree lie apart where they do most.
        obstacle: why none can be believed; empty where nothing stands against it.
    """

    verdicts: dict[tuple[str, int], Verdict] = field(default_factory=dict)
    largest: float = 0.0
    obstacle: str = ""

    def doubt(self, model: SamModel, key: str, recorded: Recorded) -> str:
        """Why logits are not adopted; empty if they are."""
        verdict = self.verdicts.get((key, recorded.prompt_set.promptset_id))
        if verdict is not None:
            return verdict.against
        if why := self.obstacle or made_otherwise(recorded.said, model):
            return why
        if against := sum(bool(one.against) for one in self.verdicts.values()):
            return (f"not believed, since {against} of {len(self.verdicts)} that SAM was asked about disagree; "
                    "--verify all adopts those that agree")  # fmt: skip
        return "" if recorded.said.branch is not None else "its meta.json names no branch; --verify all finds it"

    def told(self, logits: Tally) -> list[str]:
        """What was proved, and what was not."""
        agreed = sum(not one.against for one in self.verdicts.values())
        if self.obstacle:
            return [f"{logits.split}: no logits are adopted: {self.obstacle}"]
        if not self.verdicts:
            return []
        told = [f"{logits.split}: SAM was asked again about {len(self.verdicts):,} prompt sets; {agreed:,} have the "
                f"same branch, and logits within {self.largest:.2g}"]  # fmt: skip
        if (believed := logits.adopted - agreed) > 0:
            told.append(f"{logits.split}: the other {believed:,} logits are believed, since those agree; they are not "
                        "proved")  # fmt: skip
        return told

    def facts(self, key: str, recorded: Recorded) -> dict[str, Any]:
        """What meta.json says of logits that are adopted."""
        verdict = self.verdicts.get((key, recorded.prompt_set.promptset_id))
        if verdict is not None:
            return {"branch": verdict.branch, "predicted_ious": list(verdict.predicted_ious), "adopted": PROVED}
        ious = recorded.said.predicted_ious
        return {"branch": recorded.said.branch, "predicted_ious": ious and list(ious), "adopted": BELIEVED}


def made_otherwise(said: SaidOfSet, model: SamModel) -> str:
    """How a meta.json contradicts the SAM of the settings, in words; empty where it does not."""
    today = {"model_type": model.settings.model_type, "checkpoint": model.checkpoint.name,
             "checkpoint_sha256": model.identity["checkpoint_sha256"]}  # fmt: skip
    for name, value in said.made_with.items():
        found = Path(value).name if name == "checkpoint" else value
        if found != today[name]:
            return f"its meta.json says {name} {found}, the settings {today[name]}; --verify all would ask SAM"
    return ""


@dataclass(frozen=True)
class Asking:
    """Asks SAM again about what the original recorded of one split.

    Attributes:
        adoption: from where to where.
        split: its name.
        model: the SAM of the settings.
        ask: how many prompt sets SAM is asked about beforehand; None for all, when their turn comes.
    """

    adoption: Adoption
    split: str
    model: SamModel
    ask: int | None

    def begin(self, samples: Sequence[Sample], adopted: Mapping[str, AdoptedSets], lacking: Lacking) -> Trial:
        """Ask about the first few, those first whose image is younger than its logits, in an order given by chance.

        The order is the same every time, so that what disagreed once is asked about again the next time: adopting
        twice does not wash it clean.
        """
        trial = Trial(obstacle=_other_kind(self.adoption))
        if trial.obstacle or self.ask is None:
            return trial
        for sample, prompt_set in self._in_order(samples, adopted, lacking):
            if len(trial.verdicts) >= self.ask or trial.obstacle:
                break
            with contextlib.suppress(ValueError, OSError):  # it is named when its turn comes
                said = self.adoption.original.said(self.split, sample.key, prompt_set.promptset_id)
                if not made_otherwise(said, self.model):
                    self.about(sample, [self.recorded(sample, prompt_set)], trial)
        return trial

    def about(self, sample: Sample, asked: Sequence[Recorded], trial: Trial) -> None:
        """Ask about some prompt sets of an image."""
        try:
            frozen = self.model.frozen
        except dg.Failure as error:
            trial.obstacle = f"SAM cannot be asked here: {error.description}"
            return
        try:
            answers = frozen.answer(frozen.embed(sample.image()), [one.prompt_set for one in asked])
        except ValueError as error:
            trial.verdicts |= {(sample.key, one.prompt_set.promptset_id): Verdict(str(error), 0, ()) for one in asked}
            return
        for one, answer in zip(asked, answers, strict=True):
            against = disagreement(one.logits, answer.logits_256, their_branch=one.said.branch,
                                   our_branch=answer.branch)  # fmt: skip
            if not against:
                trial.largest = max(trial.largest, largest_difference(one.logits, answer.logits_256))
            verdict = Verdict(against, answer.branch, answer.predicted_ious)
            trial.verdicts[sample.key, one.prompt_set.promptset_id] = verdict

    def recorded(self, sample: Sample, prompt_set: PromptSet) -> Recorded:
        """Logits that the original recorded, whole and about these points. Raises `NotTaken` or `NewerFormat`."""
        where = (self.split, sample.key, prompt_set.promptset_id)
        said = self.adoption.original.said(*where)
        if (said.points.pos, said.points.neg) != (prompt_set.pos, prompt_set.neg):
            raise NotTaken("its meta.json names other points than its prompt set")
        path, array, sha256 = self.adoption.original.array(*where, "logits_256")
        if why := unusable_array(array):
            raise NotTaken(f"its {path.name} cannot be used: {why}")
        return Recorded(prompt_set, said, path, array, sha256)

    def _in_order(
        self, samples: Sequence[Sample], adopted: Mapping[str, AdoptedSets], lacking: Lacking
    ) -> Iterator[tuple[Sample, PromptSet]]:
        """Prompt sets whose logits are lacking: one of every sample, then another."""
        waiting = sorted((one for one in samples if any(part.endswith(LOGITS) for part in lacking[one.key])),
                         key=self._place)  # fmt: skip
        for turn in range(max((len(adopted[one.key].sets) for one in waiting), default=0)):
            for sample in waiting:
                sets = [one for one in adopted[sample.key].sets
                        if f"{one.promptset_id:04d}/{LOGITS}" in lacking[sample.key]]  # fmt: skip
                if turn < len(sets):
                    yield sample, sets[turn]

    def _place(self, sample: Sample) -> tuple[bool, bytes]:
        """Place of a sample in the order: whether its image is as old as its logits, then chance."""
        cached = self.adoption.original.path("sam_precompute", self.split, sample.key)
        image = sample.images_root / sample.row["image_path"]
        made = min((path.stat().st_mtime for path in cached.glob("*/logits_256.npy")), default=0.0)
        return image.stat().st_mtime <= made, hashlib.sha256(sample.key.encode()).digest()


def _other_kind(adoption: Adoption) -> str:
    """Why the settings want other logits than any of the original's."""
    asked = adoption.settings.sam
    if asked.precision != "float32":
        return f"the settings ask for precision {asked.precision}, the original's are float32"
    if asked.cache_embeddings == "float16":
        return "the settings keep embeddings as float16, which the original's logits know nothing of"
    return ""
