"""Where everything lies under the project root, and which folders a split is scanned from."""

from dataclasses import dataclass
from pathlib import Path

from sam_laplace_assets.domain.manifest import PARTITION_ROLES, check_split_key
from sam_laplace_assets.settings import DataSettings, Settings
from sam_laplace_assets.storage import tables
from sam_laplace_assets.storage.manifest import Manifest, Place, open_manifest


class SplitUnknown(ValueError):
    """A split key has no data."""


@dataclass(frozen=True)
class Project:
    """Paths of one project; a split key that is no plain name is refused before it becomes a path."""

    root: Path
    table_format: tables.Format = "parquet"

    @classmethod
    def of(cls, settings: Settings) -> "Project":
        """The project that the settings describe."""
        return cls(settings.data.project_root, settings.storage.table_format)

    @property
    def manifests(self) -> Place:
        """All manifests."""
        return Place(self.root / "manifests", self.table_format)

    def lease(self, asset: str, partition: str) -> Path:
        """File that says who is writing a partition."""
        return self.root / "leases" / (f"{asset}__{_checked(partition)}.json" if partition else f"{asset}.json")

    def prompt_sets(self, split: str) -> Path:
        """Folder of a split's prompt sets."""
        return self.root / "prompt_sets" / _checked(split)

    def sam_cache(self, split: str) -> Path:
        """Folder of what SAM says of a split."""
        return self.root / "sam_precompute" / _checked(split)

    @property
    def checkpoint_digests(self) -> Path:
        """File that remembers the SHA-256 of SAM checkpoints."""
        return self.root / "sam_precompute" / "checkpoints.json"

    def training_index(self, split: str) -> Path:
        """A split's index, without its ending."""
        return self.packs / f"{_checked(split)}_index"

    @property
    def packs(self) -> Path:
        """Folder of indices and packs."""
        return self.root / "training_data" / "no_image"

    def pack(self, split: str) -> Path:
        """A split's pack."""
        return self.packs / f"{_checked(split)}.h5"

    @property
    def validation_pack(self) -> Path:
        """File that names the pack that heads and posteriors are judged on."""
        return self.packs / "validation_pack.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of heads."""
        return self.root / "checkpoints" / "no_image"

    @property
    def posteriors(self) -> Path:
        """Folder of posteriors, and of the title."""
        return self.root / "laplace" / "no_image"

    def head_pointer(self, split: str) -> Path:
        """File that names the current head of a training split."""
        return self.checkpoints / f"current-{_checked(split)}.json"

    def posterior_pointer(self, split: str) -> Path:
        """File that names the current posterior of a training split."""
        return self.posteriors / f"current-{_checked(split)}.json"

    def posterior_pointers(self) -> list[Path]:
        """All pointers to current posteriors."""
        return sorted(self.posteriors.glob("current-*.json"))

    def packed_splits(self) -> list[str]:
        """Splits that have a pack."""
        return sorted(path.stem for path in self.packs.glob("*.h5"))

    def trained_splits(self) -> list[str]:
        """Training splits that have a current head."""
        return [path.stem.removeprefix("current-") for path in sorted(self.checkpoints.glob("current-*.json"))]

    def fitted_splits(self) -> list[str]:
        """Training splits that have a current posterior."""
        return [path.stem.removeprefix("current-") for path in self.posterior_pointers()]

    def panels(self, split: str) -> Path:
        """Folder of a split's debug panels."""
        return self.root / "reports" / "debug_panels" / _checked(split)

    def report(self, asset: str, split: str) -> Path:
        """Folder of what an asset reports of a split."""
        return self.root / "reports" / asset / _checked(split)

    def relative(self, path: Path) -> str:
        """A path below the project root, as tables name it."""
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class SplitRoots:
    """The two folders that a split's samples lie in, and what the settings call them."""

    images_root: Path
    masks_root: Path
    images_key: str = "data.images_root"
    masks_key: str = "data.masks_root"


def roots_of(data: DataSettings, split: str) -> SplitRoots:
    """The folders of a split.

    Raises:
        SplitUnknown: a named split has none; names the folder that was looked for.
    """
    _checked(split)
    if split in PARTITION_ROLES:
        return SplitRoots(data.images_root, data.masks_root)
    keys = (f"data.splits.{split}.images_root", f"data.splits.{split}.masks_root")
    if (given := data.splits.get(split)) is not None:
        return SplitRoots(given.images_root, given.masks_root, *keys)
    if data.splits_root is None:
        raise SplitUnknown(
            f"Split {split!r} has no folder: set data.splits_root to the folder that holds {split}/images and "
            f"{split}/masks, or name both roots under data.splits.{split}."
        )
    folder = data.splits_root / split
    if not folder.is_dir():
        raise SplitUnknown(
            f"Split {split!r} has no data: {folder} is not there. Put images and masks into {folder / 'images'} and "
            f"{folder / 'masks'}, or name both roots under data.splits.{split} in the settings."
        )
    if not data.allow_links_out and _leads_out(folder, data.splits_root):
        raise SplitUnknown(
            f"Split {split!r} is a link out of {data.splits_root}, to {folder.resolve()}. Name both roots under "
            f"data.splits.{split} in the settings, or set data.allow_links_out: true."
        )
    return SplitRoots(folder / "images", folder / "masks", *keys)


def manifest_of(settings: Settings, split: str) -> Manifest:
    """The valid samples of a split. Raises `NotMade`."""
    roots = roots_of(settings.data, split)
    place = Project.of(settings).manifests
    return open_manifest(place, split, images_root=roots.images_root, masks_root=roots.masks_root)


def named_splits(data: DataSettings) -> list[str]:
    """Named splits that have a folder or stand in the settings; a link out of the root is none unless it is allowed."""
    found, root = set(data.splits), data.splits_root
    if root is not None and root.is_dir():
        folders = (path for path in root.iterdir() if _is_key(path.name) and path.is_dir())
        found |= {path.name for path in folders if data.allow_links_out or not _leads_out(path, root)}
    return sorted(found - set(PARTITION_ROLES))


def _leads_out(folder: Path, root: Path) -> bool:
    """Whether a folder below a root lies elsewhere, by a link."""
    return not folder.resolve().is_relative_to(root.resolve())


def _is_key(name: str) -> bool:
    try:
        check_split_key(name)
    except ValueError:
        return False
    return True


def _checked(split: str) -> str:
    check_split_key(split)
    return split
