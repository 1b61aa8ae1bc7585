"""The least that packing must do: the bytes of all arrays and masks from one folder to another."""

import shutil
from collections.abc import Sequence
from pathlib import Path


def copy_files(sources: Sequence[Path], folder: Path) -> None:
    """Copy each file with `shutil.copyfile` into an empty folder, under a number."""
    folder.mkdir()
    for number, path in enumerate(sources):
        shutil.copyfile(path, folder / str(number))
