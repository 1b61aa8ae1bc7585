"""What a few new images cost, against preparing everything: scan to pack, in one process, without Dagster's runs."""

import gc
import os
import tempfile
from itertools import count
from pathlib import Path

from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, paired

IMAGES, NEW = 300, 3
MOST_ROUNDS = 9
"""Each prepares all images anew."""
SIZE = (320, 480)


def few_new_images(rounds: int) -> list[Row]:
    """Three more images a round; the full preparation makes a project of its own each time."""
    import dagster as dg

    from sam_laplace_assets.settings import SETTINGS_VARIABLE
    from sam_laplace_assets_tests.benchmarks.preparing import carry_out, stages
    from sam_laplace_assets_tests.small_project import SmallProject

    rounds = min(rounds, MOST_ROUNDS)
    with tempfile.TemporaryDirectory() as name, dg.DagsterInstance.ephemeral() as instance:
        project, numbers = SmallProject.new(Path(name), classes={}), count()
        counts = {"num_promptsets_train": 10, "num_promptsets_val": 4, "num_promptsets_test": 4}
        project.change(prompt_generation={**counts, "max_pairs": 10})
        os.environ[SETTINGS_VARIABLE] = str(project.config)
        _draw(project.folder, range(IMAGES))
        drawn = _draw(project.folder / "waiting", range(IMAGES, IMAGES + NEW * rounds))

        def prepare(root: str) -> int:
            project.change(data={"project_root": root})
            read, *_ = [carry_out(asset, split, instance).made for asset, split in stages()]
            return int(read)

        def three_more() -> None:
            for path in (path for _ in range(NEW) for path in next(waiting)):
                path.rename(project.folder / path.relative_to(project.folder / "waiting"))
            if (read := prepare("project")) != NEW:
                raise RuntimeError(f"{NEW} images are new, and {read} were read.")

        waiting = iter(drawn)
        prepare("project")
        gc.collect()
        gc.freeze()  # as every step's process does with what it imported, in forked.py
        return [
            paired(
                "three_new_images",
                three_more,
                lambda: prepare(f"project-{next(numbers)}"),
                what=f"scan, manifests, prompts, toy SAM, indices and packs after {NEW} new images among {IMAGES} of "
                f"{SIZE[0]}x{SIZE[1]}, 10 prompt sets each in train and 4 elsewhere",
                against="the same for all images",
                target=0.03,
                better="lower",
                rounds=rounds,
                warmup=0,
            )
        ]


def _draw(folder: Path, numbers: range) -> list[tuple[Path, Path]]:
    """Images with their masks below a folder, and where they lie."""
    from sam_laplace_assets_tests.small_project import add_sample, draw

    drawn: list[tuple[Path, Path]] = []
    for number in numbers:
        image, mask = draw(number, size=SIZE, disc=number % 2 == 0)
        name = f"{('discs', 'boxes')[number % 2]}/{number:05d}"
        drawn.append(add_sample(folder, name, number, image=image, mask=mask))
    return drawn


BENCHMARKS: dict[str, Benchmark] = {"three_new_images": few_new_images}
