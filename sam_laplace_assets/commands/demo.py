"""`sam-laplace demo`: the main job on the embedded data, and what it came to."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from sam_laplace_assets.commands.home import open_instance
from sam_laplace_assets.commands.run import make_missing
from sam_laplace_assets.settings import DEMO_FILE, DEMO_FOLDER, SETTINGS_VARIABLE, Settings, load_settings

Tell = Callable[[str], None]


def run_demo(tell: Tell) -> None:
    """Write the demo's images and masks, make everything from them, and print the scores."""
    os.environ[SETTINGS_VARIABLE] = str(DEMO_FILE)
    settings = load_settings()
    make_demo_files(settings)
    tell(f"Images and masks of the demo are in {settings.data.images_root.parent}.")
    with open_instance() as instance:
        make_missing(instance, (), (), tell)
    for line in summary(settings):
        tell(line)


def make_demo_files(settings: Settings) -> None:
    """Write the demo's images and masks where they are not there yet."""
    from sam_laplace_assets.demo.data import make_demo_data

    make_demo_data(settings.data.images_root.parent)


def summary(settings: Settings) -> list[str]:
    """What was made, the champion's scores on split test, and how to go on."""
    from sam_laplace_assets.storage.pack import Pack
    from sam_laplace_assets.storage.project import Project
    from sam_laplace_assets.storage.reports import require_facts

    project = Project.of(settings)
    packs = [Pack.open(project.pack(split)) for split in ("train", "val", "test")]
    made = [f"  {pack.split:<6}{len(pack.safe_ids):>5} samples {len(pack):>6} prompt sets" for pack in packs]
    facts = require_facts(project.report("evaluation", "test"), name="evaluation[test]")
    return ["", f"Made below {DEMO_FOLDER}/project:", *made, "", f"Champion {facts['champion']}, on split test:",
            *score_lines(facts), "",
            "Look at it:  make ui   (Dagster on http://127.0.0.1:3000, MLflow on http://127.0.0.1:5000)"]  # fmt: skip


def score_lines(facts: Mapping[str, Any]) -> list[str]:
    """IoU and NLL of the methods that were compared, means over images, and what a reader must not miss."""
    scores = facts["scores"]["per_image"]
    figures = {name: [f"{method.replace('_', ', ')} {its[key][0]:.4f}" for method, its in scores.items()]
               for name, key in (("IoU", "iou"), ("NLL", "nll"))}  # fmt: skip
    notes = [facts["verdict"], *(one for one in facts["warnings"] if one != facts["verdict"])]
    return [*(f"  {name:<6}{'   '.join(its)}" for name, its in figures.items()), *(f"  {note}" for note in notes)]
