"""`sam-laplace demo`: the main job on the embedded data, and what it came to."""

import os
from collections.abc import Callable
from pathlib import Path

from sam_laplace_assets.commands.home import open_instance
from sam_laplace_assets.commands.run import make_missing
from sam_laplace_assets.settings import DEMO_FILE, DEMO_FOLDER, SETTINGS_VARIABLE, Settings, load_settings
from sam_laplace_assets.storage import files

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
    from sam_laplace_assets.storage.champion import require_champion
    from sam_laplace_assets.storage.pack import Pack
    from sam_laplace_assets.storage.project import Project

    project = Project.of(settings)
    packs = [Pack.open(project.pack(split)) for split in ("train", "val", "test")]
    made = [f"  {pack.split:<6}{len(pack.safe_ids):>5} samples {len(pack):>6} prompt sets" for pack in packs]
    champion = require_champion(project.posteriors).run_id
    memory = project.root / "reports" / "demo_scores.json"
    scores = remembered_scores(memory, [champion, packs[-1].data_version], settings)
    return ["", f"Made below {DEMO_FOLDER}/project:", *made, "", f"Champion {champion}, on split test:", *scores, "",
            "Look at it:  make ui   (Dagster on http://127.0.0.1:3000, MLflow on http://127.0.0.1:5000)"]  # fmt: skip


def remembered_scores(memory: Path, of: list[str], settings: Settings) -> list[str]:
    """Lines about the champion on split test, computed once for each champion and pack."""
    known = files.read_json(memory) if memory.exists() else {}
    if known.get("of") != of:
        known = {"of": of, "lines": score_lines(of[0], settings)}
        files.write_json(memory, known)
    return list(known["lines"])


def score_lines(champion: str, settings: Settings) -> list[str]:
    """IoU and NLL of SAM, head and posterior on split test, means over images, and the prior precision."""
    from sam_laplace_assets.assets.champion import Candidate, score_candidate
    from sam_laplace_assets.storage.pack import Pack
    from sam_laplace_assets.storage.project import Project

    project = Project.of(settings)
    candidate = Candidate.open(champion, project)
    means = score_candidate(candidate, Pack.open(project.pack("test")), settings).means()
    meta = candidate.posterior.meta
    worse = ["the head's NLL is no better than SAM's on this split"] if means["head_nll"] >= means["sam_nll"] else []
    return [
        f"  IoU   SAM {means['sam_iou']:.4f}    head {means['head_iou']:.4f}",
        f"  NLL   SAM {means['sam_nll']:.5f}   head {means['head_nll']:.5f}   posterior {means['posterior_nll']:.5f}"
        "   nats a pixel, lower is better",
        f"  prior precision {meta['prior_precision']:g}",
        *(f"  note: {note}" for note in [*meta["warnings"], *worse]),
    ]  # fmt: skip
