"""What the posterior is worth, measured on drawn images of two kinds: the README's tables. `make findings`

Two projects over the same images, one with a head trained on pairs of points, one with a head trained on interactive
prompts. Heads learn from 300 scenes like the demo's, none of which is in it, split by the platform as any others; they
are judged on 210 more of them (`test-scenes`) and on 210 mosaics (`test-mosaics`), a kind that neither the head nor the
toy SAM was trained on. Nothing is chosen on what is judged. Everything is made by the platform itself, goes on where it
was stopped, and lies in `.findings/`.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sam_laplace_assets.demo.data import SCENE_CLASSES, DemoSample, draw_demo_scene, encode_image, encode_mask
from sam_laplace_assets.demo.files import write_if_changed
from sam_laplace_assets.demo.mosaics import FAMILIES, draw_mosaic, mosaic_rng
from sam_laplace_assets.settings import SETTINGS_VARIABLE, load_settings
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.reports import require_facts
from sam_laplace_assets.storage.tables import read_table

FOLDER = Path(".findings")
JUDGED = ("test-scenes", "test-mosaics")
A_CLASS, JUDGED_A_CLASS = 100, 70
FIRST = 100_000
"""Number of the first scene: far from those of the demo."""
MODES = ("pairs", "interactive")
RIVALS = ("entropy", "random", "foreground_random", "balanced_random")
SETTINGS: dict[str, Any] = {
    "data": {
        "images_root": "../images",
        "masks_root": "../masks",
        "splits_root": "../splits",
        "project_root": "project",
    },
    "prompt_generation": {f"num_promptsets_{role}": 4 for role in ("train", "val", "test")},
    "sam": {"model_type": "toy", "device": "auto"},
    "training": {"num_epochs": 12},
    "active_prompting": {
        "strategies": ["oracle", "bald_local", "entropy_interior", "entropy", "bald", *RIVALS[1:]],
        "clicks": 10,
        "seeds": 2,
        "first_click_jitter": 8,
        "click_jitter": 3,
    },
    "mlflow": {"enabled": False},
}


def draw_images(folder: Path) -> None:
    """Write all images and masks below `folder`; those that are there stay untouched."""
    for place, samples in (("", scenes(0, A_CLASS)), ("splits/test-scenes/", scenes(A_CLASS, JUDGED_A_CLASS)),
                           ("splits/test-mosaics/", mosaics(JUDGED_A_CLASS))):  # fmt: skip
        for one in samples:
            image, mask = f"{place}images/{one.image_name}", f"{place}masks/{one.mask_name}"
            write_if_changed(folder / image, encode_image(one.sample.image, one.image_name))
            write_if_changed(folder / mask, encode_mask(one.sample.mask, one.mask_name, one.mask_dtype))


def scenes(first: int, count: int) -> Iterator[DemoSample]:
    """Scenes of each class of the demo's, from one number on."""
    for number, name in enumerate(SCENE_CLASSES):
        for at in range(first, first + count):
            yield DemoSample(f"{name}/{at:04d}.png", f"{name}/{at:04d}.npy",
                             draw_demo_scene(name, FIRST * (number + 1) + at))  # fmt: skip


def mosaics(count: int) -> Iterator[DemoSample]:
    """Mosaics of each family."""
    for number, family in enumerate(FAMILIES):
        for at in range(count):
            drawn = draw_mosaic(mosaic_rng(1, FIRST * number + at), family=family)
            yield DemoSample(f"{family}/{at:04d}.png", f"{family}/{at:04d}.npy", drawn)


def use(folder: Path, mode: str) -> None:
    """Write the settings of one project, and put them in force."""
    home = folder / mode
    (home / "dagster_home").mkdir(parents=True, exist_ok=True)
    settings = SETTINGS | {"prompt_generation": SETTINGS["prompt_generation"] | {"mode": mode}}
    (home / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    os.environ[SETTINGS_VARIABLE] = str((home / "config.yaml").resolve())
    os.environ["DAGSTER_HOME"] = str((home / "dagster_home").resolve())


def make(mode: str) -> None:
    """Make everything of the project in force, the experiment on the judged splits included."""
    from sam_laplace_assets.commands.home import open_instance
    from sam_laplace_assets.commands.run import make_missing

    with open_instance() as instance:
        for splits, assets in (((), ()), (JUDGED, ("active_prompting",))):
            make_missing(instance, splits, assets, lambda line: print(f"[{mode}] {line}", flush=True))


def calibration(mode: str) -> Iterator[str]:
    """The verdict of each judged split."""
    project = Project.of(load_settings())
    for split in JUDGED:
        facts = require_facts(project.report("evaluation", split), name=f"evaluation[{split}]")
        yield f"- {mode}, {split}: {facts['verdict']}"


def clicks(mode: str) -> Iterator[str]:
    """A row a strategy: area and clicks to 85 %, and what it is against others."""
    from sam_laplace_assets.storage.active_prompting import TABLES

    project = Project.of(load_settings())
    for split in JUDGED:
        folder = project.report("active_prompting", split)
        summary, differences = (
            read_table(folder / f"{name}.parquet", TABLES[name]) for name in ("summary", "differences")
        )
        of_head = differences[(differences["source"] == "head") & (differences["metric"] == "area")]
        for row in summary[summary["source"] == "head"].sort_values("area", ascending=False).to_dict("records"):
            against = of_head[of_head["strategy"] == row["strategy"]].set_index("against")
            cells = [_difference(against, name) for name in RIVALS]
            area = f"{row['area']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            yield f"| {mode} | {split} | `{row['strategy']}` | {area} | {row['noc85']:.1f} | {' | '.join(cells)} |"


def _difference(against: Any, name: str) -> str:
    if name not in against.index:
        return "-"
    row = against.loc[name]
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def tell(modes: Sequence[str], folder: Path) -> None:
    """Print all findings."""
    for lines in (calibration, clicks):
        for mode in modes:
            use(folder, mode)
            print("\n".join(lines(mode)))


def main() -> None:
    """Make what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=MODES, action="append", help="only this project")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    modes = given.mode or MODES
    draw_images(given.folder)
    for mode in modes:
        use(given.folder, mode)
        make(mode)
    tell(modes, given.folder)


if __name__ == "__main__":
    main()
