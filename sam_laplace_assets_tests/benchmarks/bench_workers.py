"""What Dask costs where it gains nothing: one worker on this machine, against the same work in one process."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sam_laplace_assets_tests.benchmarks.harness import Benchmark, Row, paired
from sam_laplace_assets_tests.benchmarks.staging import PHOTO, SPLIT, Stage, photos

IMAGES, SETS = 5, 4
HOLDER = "a benchmark"


def one_worker(rounds: int) -> list[Row]:
    """sam_cache by a worker that has loaded its SAM, records and ledger included."""
    with tempfile.TemporaryDirectory() as folder:
        stage = photos(Path(folder), count=IMAGES, sets=SETS)
        model = stage.model()
        with workers(1) as compute:
            by_workers(stage, model, compute)
            return [paired(
                "one Dask worker", lambda: by_workers(stage, model, compute), lambda: _here(stage, model),
                what=f"sam_cache by one Dask worker on the machine, vit_b, {IMAGES} images of {PHOTO[0]}x{PHOTO[1]}, "
                     f"{SETS} prompt sets each, CPU, float32",
                against="the same in one process",
                target=1.10, better="lower", rounds=rounds, warmup=0,
            )]  # fmt: skip


@contextmanager
def workers(count: int) -> Iterator[Any]:
    """Settings of so many Dask workers on this machine, which run until the block ends."""
    from sam_laplace_assets.compute.cluster import start_local
    from sam_laplace_assets.settings import ComputeSettings

    with start_local(ComputeSettings(scheduler="local", workers=count)) as cluster:
        yield ComputeSettings(scheduler=cluster.scheduler_address)


def _here(stage: Stage, model: Any) -> None:
    _emptied(stage)
    stage.run(model, folder=stage.cache)


def by_workers(stage: Stage, model: Any, compute: Any) -> None:
    """The project's own cache, made by workers anew."""
    from sam_laplace_assets.assets.sam import plan_sam_cache
    from sam_laplace_assets.compute.chunk import Errand, code_here
    from sam_laplace_assets.compute.spread import Spread
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.lease import held
    from sam_laplace_assets.storage.materialise import materialise
    from sam_laplace_assets.storage.project import Project
    from sam_laplace_assets.storage.sam import SamStore

    _emptied(stage)
    settings = load_settings()
    manifest, prompts = stage.views()
    project, plan = Project.of(settings), plan_sam_cache(manifest, prompts, model, settings)
    lease, name = project.lease("sam_cache", SPLIT), f"sam_cache[{SPLIT}]"
    errand = Errand(name, plan.elsewhere, plan.made_with, code_here(), lease, HOLDER, project.root)  # type: ignore[arg-type]
    with held(lease, holder=HOLDER, waiting=print):
        spread = Spread(errand, compute, lambda line: None)
        outcome = materialise(plan, SamStore(stage.cache), progress=lambda *_: None, carry=spread)
    assert outcome.made == len(manifest) * stage.sets


def _emptied(stage: Stage) -> None:
    shutil.rmtree(stage.cache, ignore_errors=True)
    stage.cache.with_name(f"{stage.cache.name}.ledger.parquet").unlink(missing_ok=True)


BENCHMARKS: dict[str, Benchmark] = {"one_worker": one_worker}
