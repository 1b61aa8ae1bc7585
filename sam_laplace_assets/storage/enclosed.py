"""HDF5 files that hold what they say: HDF5 itself follows links, external storage and virtual sources anywhere."""

from collections.abc import Collection
from pathlib import Path

import h5py


class DataElsewhere(ValueError):
    """A dataset of an HDF5 file lies in a file that is not ours, or claims more than is there."""


def require_enclosed(path: Path, file: h5py.File, *, sources: Collection[str] = ()) -> None:
    """Refuse a file of which any dataset lies elsewhere, or would need memory for values that are nowhere.

    Args:
        path: of the file, for words.
        file: open for reading; its values are not read.
        sources: names of the files that its virtual datasets may be made of.

    Raises:
        DataElsewhere: names the file and the dataset.
    """
    for name in file:
        if problem := _problem(file, name, set(sources)):
            raise DataElsewhere(f"{path}: {name} {problem}. Delete that file and materialise hdf5_pack again.")


def _problem(file: h5py.File, name: str, sources: set[str]) -> str:
    """What is wrong with a member of a file; empty if nothing is."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return "is a link"
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        return "is no dataset"
    created = dataset.id.get_create_plist()
    if created.get_external_count():
        return f"lies in another file, {created.get_external(0)[0].decode(errors='replace')}"
    if dataset.is_virtual:
        named = {created.get_virtual_filename(at) for at in range(created.get_virtual_count())}
        return f"is made of {min(named - sources)}, which is no shard of it" if named - sources else ""
    claimed, held = dataset.size or 0, dataset.id.get_storage_size()
    return f"claims {claimed:,} values and holds {held:,} bytes" if claimed > held else ""
