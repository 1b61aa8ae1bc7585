"""The frozen SAM that the settings name, loaded when it is first asked for."""

import contextlib
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from sam_laplace_assets.settings import SamSettings
from sam_laplace_assets.storage import files

if TYPE_CHECKING:
    from sam_laplace_assets.domain.sam import FrozenSam, Precision

MOST_IO_THREADS = 8


@dataclass(frozen=True)
class SamModel:
    """A checkpoint, its identity, and the model once it is needed.

    Attributes:
        settings: which it is, and how it runs.
        digests: remembers the SHA-256 of checkpoints; None where it is to be computed.
    """

    settings: SamSettings
    digests: Path | None

    @cached_property
    def checkpoint(self) -> Path:
        """The checkpoint's file; the packaged one for a toy without any."""
        if self.settings.checkpoint is not None:
            return self.settings.checkpoint
        from sam_laplace_assets.demo.toy_sam import TOY_CHECKPOINT

        return TOY_CHECKPOINT

    @cached_property
    def identity(self) -> dict[str, str]:
        """What SAM's answers depend on beside image and points."""
        from sam_laplace_assets.domain.sam import SAM_VERSION

        return {
            "checkpoint_sha256": sha256_of_checkpoint(self.checkpoint, self.digests),
            "model_type": self.settings.model_type, "precision": self.settings.precision, "version": SAM_VERSION,
        }  # fmt: skip

    @cached_property
    def frozen(self) -> "FrozenSam":
        """The model, on its device; of the same weights, a process loads one for all partitions that it makes.

        Raises:
            dagster.Failure: there is no such device, or the checkpoint is refused; no sample's fault, so the run ends.
        """
        settings = self.settings
        try:
            return _loaded(settings.model_type, self.checkpoint, self.identity["checkpoint_sha256"], settings.device,
                           settings.precision, settings.compile, settings.images_per_batch)  # fmt: skip
        except ValueError as error:
            raise dg.Failure(str(error), allow_retries=False) from error

    @property
    def images_per_batch(self) -> int:
        """Images that are read and asked about together: one on a CPU, where more gain nothing."""
        from sam_laplace_assets.domain.sam import IMAGES_AT_ONCE

        return self.settings.images_per_batch or (IMAGES_AT_ONCE if self.frozen.device.type == "cuda" else 1)

    @property
    def prompt_sets_per_batch(self) -> int | None:
        """Prompt sets in one call of the decoder; None lets the GPU's memory choose.

        On a CPU they are asked one by one, so that no bit of an answer depends on which others were missing.
        """
        return self.settings.prompt_sets_per_batch or (None if self.frozen.device.type == "cuda" else 1)

    @property
    def io_threads(self) -> int:
        """Threads that read images, and as many that write: half of the cores, which leaves SAM the others."""
        return self.settings.io_threads or max(1, min(MOST_IO_THREADS, (os.cpu_count() or 1) // 2))


class SamResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Gives the SAM that the settings name."""

    def model(self, settings: SamSettings, digests: Path) -> SamModel:
        """That SAM, not loaded yet; `digests` remembers the SHA-256 of checkpoints."""
        return SamModel(settings, digests)


@lru_cache(maxsize=1)
def _loaded(
    model_type: str, checkpoint: Path, sha256: str, device: str, precision: "Precision", compile: bool,
    images_at_once: int | None,
) -> "FrozenSam":  # fmt: skip
    """The model in a checkpoint that holds what this digest says."""
    from sam_laplace_assets.resources.checkpoints import load_frozen_sam

    return load_frozen_sam(model_type, checkpoint, device=device, precision=precision, compile=compile,
                           images_at_once=images_at_once)  # fmt: skip


def model_here(settings: SamSettings) -> SamModel:
    """The SAM of a worker, loaded once for all that it is sent; its checkpoint may be a copy of its own."""
    return _kept(settings, files.signature(SamModel(settings, None).checkpoint))


@lru_cache(maxsize=1)
def _kept(settings: SamSettings, _signature: str) -> SamModel:
    return SamModel(settings, None)


def sha256_of_checkpoint(path: Path, memory: Path | None) -> str:
    """SHA-256 of a checkpoint, computed again only when its size or time is not what is remembered.

    Raises:
        dagster.Failure: the file is not there.
    """
    now = f"{path.parent}/{files.signature(path)}"
    if not path.is_file():
        raise dg.Failure(f"SAM checkpoint {path} is not there. Set sam.checkpoint to a file that is.",
                         allow_retries=False)  # fmt: skip
    if memory is None:
        return files.file_sha256(path)
    known = files.read_json(memory) if memory.exists() else {}
    if known.get(now) is None:
        known[now] = files.file_sha256(path)
        with contextlib.suppress(files.DiskRefused):  # it is only a memory: who looks at what is there needs no room
            files.write_json(memory, known)
    return str(known[now])
