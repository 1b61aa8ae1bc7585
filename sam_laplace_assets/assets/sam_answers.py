"""How sam_cache is made: files read and maps drawn ahead by threads, SAM asked for several images at once."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sam_laplace_assets.domain.ahead import ahead
from sam_laplace_assets.domain.geometry import to_low_res
from sam_laplace_assets.domain.plan import INPUT_ERRORS, Item, Made, Task, one_by_one
from sam_laplace_assets.domain.prompts import MAPS_VERSION, PromptSet, gaussian_map, gaussian_maps
from sam_laplace_assets.resources.sam import SamModel
from sam_laplace_assets.storage.embeddings import EmbeddingCache, embedding_bytes
from sam_laplace_assets.storage.manifest import Sample
from sam_laplace_assets.storage.prompts import Prompts
from sam_laplace_assets.storage.sam import SampleOutput, SetOutput

if TYPE_CHECKING:
    import torch

    from sam_laplace_assets.domain.sam import Asked, Embedding, FrozenSam, Prepared, SamAnswer
    from sam_laplace_assets.domain.transfer import Fetched

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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, eq=False)
class UnderWay:
    """Tasks that SAM was asked about, whose answers a GPU may still be computing.

    Attributes:
        batch: the tasks, with their embeddings.
        answers: to each.
        embeddings: of the images that went through the encoder, if they are kept.
        kept_as: their provenance's dtype; None where none are kept.
        maps: (M, 256, 256) float16 that a GPU draws, positive and negative of each set in order; None where the tasks
            hold them.
    """

    batch: Sequence[Ready]
    answers: "Asked"
    embeddings: "Fetched"
    kept_as: str | None
    maps: "Fetched | None"

    def finish(self) -> list[tuple[Ready, SampleOutput]]:
        """Each task with what is written for it, once that is there."""
        embeddings = iter(self.embeddings.wait())
        drawn = None if self.maps is None else iter(self.maps.wait()[0].numpy())
        made = []
        for one, answers in zip(self.batch, self.answers.wait(), strict=True):
            names = [] if drawn is None else names_of(one.task[1], MAPS)
            maps = one.maps if drawn is None else {name: (next(drawn), next(drawn)) for name in names}
            value = output(replace(one, maps=maps), answers)
            if self.kept_as is not None and one.image is not None:
                features = next(embeddings).numpy().astype(self.kept_as)
                value = replace(value, embedding=embedding_bytes(features, one.task[0].source.embedding))
            made.append((one, value))
        return made


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
        if not ready.asked:
            return output(ready, [])
        ((_, made),) = self._begin([ready]).finish()
        return made

    def make_all(self, tasks: Iterable[Task]) -> Iterator[Made]:
        """The same for many samples, faster; an image that SAM refuses is its own failure."""
        tasks = list(tasks)
        if not any(names_of(parts, LOGITS) for _, parts in tasks):
            yield from one_by_one(self.make, tasks)
            return
        small = self.model.frozen.image_size <= SMALL  # loads the model, before any thread may
        size, threads = self.model.images_per_batch, self.model.io_threads
        reading = ahead(self._try_read, tasks, depth=size + threads, threads=threads, begin=_without_helpers)
        with _cores_left_to(threads, small=small), closing(reading):
            yield from self._answer(iter(lambda: list(islice(reading, size)), []))

    def _answer(self, batches: Iterable[Sequence[Ready]]) -> Iterator[Made]:
        """What becomes of batches, on a GPU one behind the asking: it answers the next while this one is stored."""
        under_way: deque[UnderWay] = deque()
        for batch in batches:
            yield from (Made(*one.task, failed=one.failed) for one in batch if one.failed)
            read = [one for one in batch if not one.failed]
            yield from (Made(*one.task, output(one, [])) for one in read if not one.asked)
            asked = [one for one in read if one.asked]
            try:
                under_way.extend([self._begin(asked)] if asked else [])
            except INPUT_ERRORS:
                yield from one_by_one(self.make, [one.task for one in asked])
            while len(under_way) > (1 if self._on_gpu else 0):
                yield from self._finish(under_way.popleft())
        for last in under_way:
            yield from self._finish(last)

    def _finish(self, under_way: UnderWay) -> Iterator[Made]:
        try:
            made = under_way.finish()
        except INPUT_ERRORS:
            yield from one_by_one(self.make, [one.task for one in under_way.batch])
            return
        yield from (Made(*one.task, value) for one, value in made)

    @property
    def _on_gpu(self) -> bool:
        return self.model.frozen.device.type == "cuda"

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
        asked = names_of(parts, LOGITS)
        drawn = [] if asked and self._on_gpu else names_of(parts, MAPS)
        ready = Ready(task, sets, {name: _maps(sets[name], source) for name in drawn})
        if not asked:
            return ready
        stored = None if self.cache is None else self.cache.read(item.key, source.embedding)
        frozen = self.model.frozen
        if stored is not None:
            return replace(ready, embedding=frozen.embedding(torch.from_numpy(stored), source.sample.size))
        return replace(ready, image=frozen.prepare(source.sample.image()))

    def _begin(self, batch: Sequence[Ready]) -> UnderWay:
        """Ask SAM about tasks."""
        from sam_laplace_assets.domain.transfer import Fetched

        frozen = self.model.frozen
        embedded = self._embedded(frozen, batch)
        asked = [(one.embedding, one.asked) for one in embedded if one.embedding is not None]
        answers = frozen.ask_many(asked, max_batch=self.model.prompt_sets_per_batch)
        new = [one.embedding.features for one in embedded if one.image is not None and one.embedding is not None]
        kept_as = None if self.cache is None else self.cache.dtype
        maps = Fetched([maps_on(frozen.device, embedded)]) if self._on_gpu else None
        return UnderWay(embedded, answers, Fetched([] if kept_as is None else new), kept_as, maps)

    def _embedded(self, frozen: "FrozenSam", batch: Sequence[Ready]) -> list[Ready]:
        images = [one.image for one in batch if one.image is not None]
        new = iter(frozen.embed_batch(images))
        return [one if one.image is None else replace(one, embedding=self._as_kept(next(new))) for one in batch]

    def _as_kept(self, embedding: "Embedding") -> "Embedding":
        """As the cache would give it back, so that answers do not depend on whether it did."""
        if self.cache is None or self.cache.dtype == "float32":
            return embedding
        return replace(embedding, features=embedding.features.half().float())


def _without_helpers() -> None:
    """Have PyTorch compute on this thread alone, and on each that is yet to come.

    With helpers of its own there would be more of them than cores, and OpenMP would have SAM's go to sleep after each
    product instead of waiting a moment for the next one.
    """
    import torch

    torch.set_num_threads(1)


@contextmanager
def _cores_left_to(threads: int, *, small: bool) -> Iterator[None]:
    """Leave cores to threads that read and write, where a SAM is so small that they work as much as it does.

    In the end the number of PyTorch's threads is what it was, for this thread and for those that are yet to come, which
    `_without_helpers` had changed.
    """
    import torch

    before = torch.get_num_threads()
    if small:
        torch.set_num_threads(max(1, before - threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def output(ready: Ready, answers: Sequence["SamAnswer"]) -> SampleOutput:
    """What is written for one sample, beside its embedding."""
    by_name = {f"{one.promptset_id:04d}": answer for one, answer in zip(ready.asked, answers, strict=True)}
    names = sorted({*by_name, *ready.maps})
    source: SamSource = ready.task[0].source
    return SampleOutput([_set_output(source, ready.sets[name], by_name.get(name), ready.maps.get(name))
                         for name in names])  # fmt: skip


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


def maps_on(device: "torch.device", batch: Sequence[Ready]) -> "torch.Tensor":
    """(M, 256, 256) float16 maps that tasks of one recipe lack, drawn on a device: of each set positive, negative."""
    points = [side for one in batch for name in names_of(one.task[1], MAPS)
              for side in _low_res(one.sets[name], one.task[0].source)]  # fmt: skip
    (sigma,) = {one.task[0].source.recipe.gaussian_sigma for one in batch}
    return gaussian_maps(points, sigma=sigma, device=device)


def _low_res(prompt_set: PromptSet, source: SamSource) -> list[np.ndarray]:
    """(K, 2) positive and negative points in pixels at 256x256."""
    height, width = source.sample.size
    return [
        to_low_res(np.asarray(points), image_h=height, image_w=width) for points in (prompt_set.pos, prompt_set.neg)
    ]


def names_of(parts: Iterable[str], kind: str) -> list[str]:
    """The prompt sets whose part of a kind is among these: `0003` for `0003/logits`."""
    return sorted(name for name, _, of in (part.partition("/") for part in parts) if of == kind)
