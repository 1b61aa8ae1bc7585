"""`sam-laplace demo`: the main job on the embedded data, and what it came to."""

import os
from collections.abc import Callable
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
    from sam_laplace_assets.assets.champion import Candidate, score_candidate
    from sam_laplace_assets.storage.champion import require_champion
    from sam_laplace_assets.storage.pack import Pack
    from sam_laplace_assets.storage.project import Project

    project = Project.of(settings)
    packs = [Pack.open(project.pack(split)) for split in ("train", "val", "test")]
    champion = require_champion(project.posteriors)
    candidate = Candidate.open(champion.run_id, project)
    means = score_candidate(candidate, packs[-1], settings).means()
    made = [f"  {pack.split:<6}{len(pack.safe_ids):>5} samples {len(pack):>6} prompt sets" for pack in packs]
    scores = _scores(champion.run_id, means, candidate.posterior.meta)
    return ["", f"Made below {DEMO_FOLDER}/project:", *made, *scores, "",
            "Look at it:  make ui   (Dagster on http://127.0.0.1:3000, MLflow on http://127.0.0.1:5000)"]  # fmt: skip


def _scores(run_id: str, means: dict[str, float], meta: Any) -> list[str]:
    return [
        "", f"Champion {run_id}, on split test (mean over images):",
        f"  IoU   SAM {means['sam_iou']:.4f}   head {means['head_iou']:.4f}",
        f"  NLL   SAM {means['sam_nll']:.5f}   head {means['head_nll']:.5f}   posterior {means['posterior_nll']:.5f}"
        "   nats a pixel",
        f"  prior precision {meta['prior_precision']:g}" + "".join(f"\n  note: {one}" for one in meta["warnings"]),
    ]  # fmt: skip
