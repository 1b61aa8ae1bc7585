"""A Laplace posterior, as a folder `run_<id>/`. version 3

laplace_state.pt       `laplace`, laplace-torch's own state, and `head`, the weights of the head that it belongs to;
                       plain tensors and numbers, read with `weights_only=True`; version 1 has the state alone
laplace_config.yaml    the settings that it was fitted with
posterior_meta.json    written last: run, head and its SHA-256, packs, approximation, prior precision and its grid with
                       validation NLL, temperature, counts, versions, warnings, and the SHA-256 of the files above;
                       since version 2 also `probe`: what it predicts on an input that no data decide; since version 3
                       also `logit_scale`: {value, nll_before, nll_after, applied}, the factor on its logits that
                       validation likes best, and whether it is part of what the posterior predicts; the probe is taken
                       without it; value and NLLs are null where no factor is best
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sam_laplace_assets.domain.plan import Item, Record
from sam_laplace_assets.storage import files, weights
from sam_laplace_assets.storage.runs import RunStore, refuse_finished
from sam_laplace_assets.storage.store import NotMade

if TYPE_CHECKING:
    from sam_laplace_assets.domain.predictor import Predictor

VERSION = 3
PART = "run"
META = "posterior_meta.json"
STATE = "laplace_state.pt"
CONFIG = "laplace_config.yaml"


@dataclass(frozen=True)
class FittedPosterior:
    """What a fit gives to the store.

    Attributes:
        state: laplace-torch's own.
        head: state dict of the whole head, of whose last layer the state is.
        config: the settings.
        meta: what a reader needs to trust it.
    """

    state: Mapping[str, Any]
    head: Mapping[str, Any]
    config: Mapping[str, Any]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class PosteriorRun:
    """A posterior on disk: its name, its folder, and what posterior_meta.json says."""

    run_id: str
    folder: Path
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "PosteriorRun":
        """The posterior in `folder`. Raises `NotMade` or `Damaged`."""
        meta = _read_meta(folder)
        if meta is None:
            raise NotMade(f"{folder.name} is not there. Materialise laplace_posterior first.")
        for name in (STATE, CONFIG):
            _verified(folder, name, meta)
        return cls(folder.name.removeprefix("run_"), folder, meta)

    def refuse_other_sam(self, *, checkpoint_sha256: str, gaussian_sigma: float) -> None:
        """ValueError if its head learned from another SAM or from maps of another width, as far as is recorded."""
        known = self.meta.get("sam") or {}
        asked = {"checkpoint_sha256": checkpoint_sha256, "gaussian_sigma": gaussian_sigma}
        if other := [name for name, value in asked.items() if known.get(name, value) != value]:
            learned, now = (", ".join(f"{name} {_short(one[name])}" for name in other) for one in (known, asked))
            raise ValueError(
                f"The head of {self.run_id} learned from {learned}; the settings have {now}. Set what it was trained "
                "with, or train on these settings first."
            )

    def state(self) -> dict[str, Any]:
        """laplace-torch's state, checked against its SHA-256."""
        saved = self._saved()
        return dict(saved if self.meta["version"] == 1 else saved["laplace"])

    def head(self) -> dict[str, Any]:
        """State dict of the head that it belongs to. Raises `Damaged` where it was not kept with it, in version 1."""
        if self.meta["version"] == 1:
            raise weights.Damaged(
                f"{self.folder} holds no head: an earlier version of this package has fitted it. Materialise "
                "laplace_posterior with a label."
            )
        return dict(self._saved()["head"])

    @property
    def logit_scale(self) -> float:
        """The factor on logits that it is used with; 1.0 where none is applied, and before version 3."""
        scale = self.meta.get("logit_scale", {})
        return float(scale["value"]) if scale.get("applied") else 1.0

    def _saved(self) -> dict[str, Any]:
        return dict(weights.load(_verified(self.folder, STATE, self.meta), path=self.folder / STATE))


def open_predictor(folder: Path, *, device: str = "cpu") -> "Predictor":
    """The posterior in `folder`, with its head, ready to predict. Raises as `load_posterior`."""
    from sam_laplace_assets.domain.head import restore_head
    from sam_laplace_assets.domain.posterior import restore_laplace
    from sam_laplace_assets.domain.predictor import Predictor

    run = PosteriorRun.open(folder)
    head = restore_head(run.head())
    laplace = restore_laplace(head, run.state(), target_layer=run.meta["target_layer"])
    return Predictor(head, laplace, logit_clip=run.meta["logit_clip"], logit_scale=run.logit_scale, device=device)


class PosteriorStore(RunStore):
    """The posteriors of one training split; the item is a run, its value a `FittedPosterior`."""

    def records(self, items: Sequence[Item]) -> dict[str, Record]:
        """The posteriors that are there; a damaged one is an error, since it is never made over."""
        metas = {item.key: _read_meta(self.locate(item)) for item in items}
        for item in items:
            if metas[item.key] is not None:
                PosteriorRun.open(self.locate(item))
        return {key: _record(meta) for key, meta in metas.items() if meta is not None}

    def write(self, item: Item, parts: frozenset[str], value: FittedPosterior) -> Record:
        """Store a posterior. Raises `Damaged` where there is one: what was finished is never made over."""
        folder = self.locate(item)
        refuse_finished(folder / META)
        config = yaml.safe_dump(dict(value.config), sort_keys=False)
        contents = {STATE: weights.dump({"laplace": value.state, "head": value.head}), CONFIG: config.encode()}
        meta = {"format": "laplace_posterior", "version": VERSION, "run_id": item.key, **value.meta}
        meta |= {"provenance": item.parts[PART]}
        meta["sha256"] = {name: files.sha256(content) for name, content in contents.items()}
        named = {folder / name: content for name, content in contents.items()}
        files.write_set({**named, folder / META: files.json_bytes(files.sealed(meta))})
        return _record(meta)


def _short(value: Any) -> str:
    return str(value)[:12]


def _record(meta: Mapping[str, Any]) -> Record:
    return Record({PART: meta["provenance"]}, {PART: meta["sha256"][STATE]}, {})


def _read_meta(folder: Path) -> dict[str, Any] | None:
    path = folder / META
    return weights.read_versioned(path, version=VERSION) if path.exists() else None


def _verified(folder: Path, name: str, meta: Mapping[str, Any]) -> bytes:
    return weights.verified((folder / name,), meta["sha256"][name], named_by=META)
