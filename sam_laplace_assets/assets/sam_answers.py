"""How sam_cache is made: files read and maps drawn ahead by threads, SAM asked for several images at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sam_laplace_assets.domain.ahead import ahead
from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.plan import INPUT_ERRORS, Item, Made, Task, one_by_one
from sam_laplace_assets.domain.prompts import MAPS_VERSION, PromptSet, gaussian_map
from sam_laplace_assets.resources.sam import SamModel
from sam_laplace_assets.storage.embeddings import EmbeddingCache, embedding_bytes
from sam_laplace_assets.storage.manifest import Sample
from sam_laplace_assets.storage.prompts import Prompts
from sam_laplace_assets.storage.sam import SampleOutput, SetOutput

if TYPE_CHECKING:
    from sam_laplace_assets.domain.sam import Embedding, FrozenSam, Prepared, SamAnswer

LOGITS, MAPS = "logits", "maps"
SMALL = 512
"""Side of the input, in pixels, up to which reading and writing take as long as SAM itself."""


@dataclass(frozen=True)
class SamRecipe:
    """How answers and maps are made, the same for all samples.

    Attributes:
        identity: what SAM's answers depend on beside image and points.
        gaussian_sigma: of the maps, pixels at 256x256.
        kept_as: dtype of the embeddings that are kept; None where none are.
    """

    identity: Mapping[str, str]
    gaussian_sigma: float
    kept_as: str | None = None


@dataclass(frozen=True)
class SamSource:
    """One sample, the prompts view, and how it is made; provenance is told when asked for, as there is much of it."""

    sample: Sample
    prompts: Prompts
    recipe: SamRecipe

    @property
    def parts(self) -> dict[str, Mapping[str, Any]]:
        """Part (`0003/logits`, `0003/maps`) -> its provenance."""
        of = {LOGITS: self._of_logits, MAPS: self._of_maps}
        points = self.prompts.points[self.sample.key]
        return {f"{name}/{kind}": tell(digest) for name, digest in points.items() for kind, tell in of.items()}

    def provenance(self, part: str) -> Mapping[str, Any]:
        """That of one part."""
        name, _, kind = part.partition("/")
        points = self.prompts.points[self.sample.key][name]
        return self._of_logits(points) if kind == LOGITS else self._of_maps(points)

    @property
    def embedding(self) -> Mapping[str, Any]:
        """The provenance of what the encoder makes of the image."""
        return {**self._encoded, "dtype": self.recipe.kept_as}

    @property
    def _encoded(self) -> dict[str, Any]:
        return {"image_digest": self.sample.row["image_digest"], **self.recipe.identity}

    def _of_logits(self, points: str) -> Mapping[str, Any]:
        rounded = {"embeddings": "float16"} if self.recipe.kept_as == "float16" else {}
        return {**self._encoded, "points": points, **rounded}

    def _of_maps(self, points: str) -> Mapping[str, Any]:
        return {"points": points, "image_size": list(self.sample.size), "gaussian_sigma": self.recipe.gaussian_sigma,
                "version": MAPS_VERSION}  # fmt: skip


@dataclass(frozen=True)
class Ready:
    """A task with all that a thread read and drew for it.

    Attributes:
        task: what is asked for.
        sets: the prompt sets that it touches, by name ("0003").
        maps: name -> maps of positive and negative points, (256, 256) float16, of the sets whose maps are to be made.
        image: for SAM's encoder; None where it is not needed.
        embedding: that of an earlier run; None where there is none.
        failed: what is wrong with the input; empty where nothing is.
    """

    task: Task
    sets: Mapping[str, PromptSet] = field(default_factory=dict)
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    image: "Prepared | None" = None
    embedding: "Embedding | None" = None
    failed: str = ""

    @property
    def asked(self) -> list[PromptSet]:
        """The prompt sets that SAM has to answer."""
        return [self.sets[name] for name in names_of(self.task[1], LOGITS)]


@dataclass(frozen=True)
class SamWork:
    """Answers tasks of sam_cache.

    Attributes:
        model: the SAM that is asked.
        cache: where embeddings are kept, or None.
    """

    model: SamModel
    cache: EmbeddingCache | None = None

    def make(self, item: Item, parts: frozenset[str]) -> SampleOutput:
        """Ask SAM what is missing of one sample, and draw the maps that are."""
        ready = self._read((item, parts))
        if ready.asked:
            ((made, answers),) = self._answers([ready])
            return output(made, answers, self.cache)
        return output(ready, [], self.cache)

    def make_all(self, tasks: Iterable[Task]) -> Iterator[Made]:
        """The same for many samples, faster; an image that SAM refuses is its own failure."""
        tasks = list(tasks)
        if not any(names_of(parts, LOGITS) for _, parts in tasks):
            yield from one_by_one(self.make, tasks)
            return
        size, threads = self.model.images_per_batch, self.model.io_threads  # loads the model, before any thread may
        reading = ahead(self._try_read, tasks, depth=size + threads, threads=threads)
        with _cores_left_to(threads, small=self.model.frozen.image_size <= SMALL):
            while batch := list(islice(reading, size)):
                yield from (Made(*one.task, failed=one.failed) for one in batch if one.failed)
                yield from self._make_batch([one for one in batch if not one.failed])

    def _make_batch(self, batch: Sequence[Ready]) -> Iterator[Made]:
        plain, asked = ([one for one in batch if bool(one.asked) is wanted] for wanted in (False, True))
        yield from (Made(*one.task, output(one, [], self.cache)) for one in plain)
        try:
            answered = self._answers(asked) if asked else []
        except INPUT_ERRORS:
            yield from one_by_one(self.make, [one.task for one in asked])
            return
        yield from (Made(*one.task, output(one, answers, self.cache)) for one, answers in answered)

    def _try_read(self, task: Task) -> Ready:
        try:
            return self._read(task)
        except INPUT_ERRORS as error:
            return Ready(task, failed=str(error))

    def _read(self, task: Task) -> Ready:
        import torch

        item, parts = task
        source: SamSource = item.source
        sets = {f"{one.promptset_id:04d}": one for one in source.prompts.read(item.key)}
        maps = {name: _maps(sets[name], source) for name in names_of(parts, MAPS)}
        ready = Ready(task, sets, maps)
        if not names_of(parts, LOGITS):
            return ready
        stored = None if self.cache is None else self.cache.read(item.key, source.embedding)
        frozen = self.model.frozen
        if stored is not None:
            return replace(ready, embedding=frozen.embedding(torch.from_numpy(stored), source.sample.size))
        return replace(ready, image=frozen.prepare(source.sample.image()))

    def _answers(self, batch: Sequence[Ready]) -> list[tuple[Ready, list["SamAnswer"]]]:
        """Tasks with their embeddings, and what SAM says to the prompt sets of each."""
        frozen = self.model.frozen
        embedded = self._embedded(frozen, batch)
        asked = [(one.embedding, one.asked) for one in embedded if one.embedding is not None]
        answers = frozen.answer_many(asked, max_batch=self.model.prompt_sets_per_batch)
        return list(zip(embedded, answers, strict=True))

    def _embedded(self, frozen: "FrozenSam", batch: Sequence[Ready]) -> list[Ready]:
        images = [one.image for one in batch if one.image is not None]
        new = iter(frozen.embed_batch(images, max_batch=self.model.settings.images_per_batch))
        return [one if one.image is None else replace(one, embedding=self._as_kept(next(new))) for one in batch]

    def _as_kept(self, embedding: "Embedding") -> "Embedding":
        """As the cache would give it back, so that answers do not depend on whether it did."""
        if self.cache is None or self.cache.dtype == "float32":
            return embedding
        return replace(embedding, features=embedding.features.half().float())


@contextmanager
def _cores_left_to(threads: int, *, small: bool) -> Iterator[None]:
    """Leave cores to threads that read and write, where a SAM is so small that they work as much as it does."""
    import torch

    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(max(1, before - threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def output(ready: Ready, answers: Sequence["SamAnswer"], cache: EmbeddingCache | None) -> SampleOutput:
    """What is written for one sample."""
    source: SamSource = ready.task[0].source
    by_name = {f"{one.promptset_id:04d}": answer for one, answer in zip(ready.asked, answers, strict=True)}
    names = sorted({*by_name, *ready.maps})
    sets = [_set_output(source, ready.sets[name], by_name.get(name), ready.maps.get(name)) for name in names]
    if cache is None or ready.image is None or ready.embedding is None:
        return SampleOutput(sets)
    features = ready.embedding.features.cpu().numpy().astype(cache.dtype)
    return SampleOutput(sets, embedding_bytes(features, source.embedding))


def _set_output(
    source: SamSource, prompt_set: PromptSet, answer: "SamAnswer | None", maps: tuple[np.ndarray, np.ndarray] | None
) -> SetOutput:
    """The arrays of one prompt set that were made, and the facts of its meta.json."""
    name = f"{prompt_set.promptset_id:04d}"
    facts: dict[str, Any] = {"sample_id": source.sample.sample_id, "k_pairs": prompt_set.k_pairs}
    arrays: dict[str, np.ndarray] = {}
    provenance: dict[str, Mapping[str, Any]] = {}
    if maps is not None:
        provenance[MAPS] = source.provenance(f"{name}/{MAPS}")
        arrays |= dict(zip(("pos_map", "neg_map"), maps, strict=True))
        points = {"pos": prompt_set.pos, "neg": prompt_set.neg}
        low_res = zip(points, _low_res(prompt_set, source), strict=True)
        facts |= {"sigma": provenance[MAPS]["gaussian_sigma"], "points": points,
                  "points_256": {side: places.tolist() for side, places in low_res}}  # fmt: skip
    if answer is not None:
        provenance[LOGITS] = source.provenance(f"{name}/{LOGITS}")
        arrays["logits_256"] = answer.logits_256
        facts |= {"branch": answer.branch, "predicted_ious": list(answer.predicted_ious)}
    return SetOutput(prompt_set.promptset_id, arrays, facts, provenance)


def _maps(prompt_set: PromptSet, source: SamSource) -> tuple[np.ndarray, np.ndarray]:
    """(256, 256) float16 maps of the positive and of the negative points."""
    sigma = source.recipe.gaussian_sigma
    pos, neg = (gaussian_map(points, sigma=sigma) for points in _low_res(prompt_set, source))
    return pos, neg


def _low_res(prompt_set: PromptSet, source: SamSource) -> list[np.ndarray]:
    """(K, 2) positive and negative points in pixels at 256x256."""
    height, width = source.sample.size
    return [
        to_low_res(np.asarray(points), image_h=height, image_w=width) for points in (prompt_set.pos, prompt_set.neg)
    ]


def names_of(parts: Iterable[str], kind: str) -> list[str]:
    """The prompt sets whose part of a kind is among these: `0003` for `0003/logits`."""
    return sorted(name for name, _, of in (part.partition("/") for part in parts) if of == kind)
