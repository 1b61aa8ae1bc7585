"""What the parts of a real sample cost that a simulation with small images and holes for arrays leaves out.

`python -m sam_laplace_assets_tests.benchmarks.units`
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sam_laplace_assets_tests.benchmarks.simulation import KEPT

FEWER, MORE = 10, 50
"""Photos: the difference between the two leaves out what is the same for any number."""
CACHED = 30
SETS = 10


def main() -> None:
    """Measure, and keep the figures beside the simulations."""
    found = measure()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"runs": []}
    KEPT.write_text(json.dumps({**kept, "units": found}, indent=1) + "\n")
    print(json.dumps(found))


def measure() -> dict[str, float]:
    """Seconds of a photo and of a cached prompt set; of a packed row, `make bench` measures them."""
    few, many = _photos(FEWER), _photos(MORE)
    photos = {f"{asset}_of_a_photo_s": (many[asset] - few[asset]) / (MORE - FEWER) for asset in few}
    return {name: round(value, 6) for name, value in {**photos, "cached_set_s": _cached_set()}.items()}


def _photos(count: int) -> dict[str, float]:
    """Seconds of reading photos and their masks into a manifest, and of drawing and writing their prompt sets."""
    import dagster as dg

    from sam_laplace_assets_tests.benchmarks.preparing import SCAN, carry_out
    from sam_laplace_assets_tests.benchmarks.staging import SPLIT, Stage, _photo

    image, mask = _photo(0)
    with tempfile.TemporaryDirectory() as name, dg.DagsterInstance.ephemeral() as instance:
        stage = Stage(Path(name), {"model_type": "toy", "device": "cpu"}, sets=SETS)
        for number in range(count):
            stage.add(f"photos/{number:04d}", np.roll(image, 16 * number, 1), np.roll(mask, 16 * number, 1))
        stage._write(stage.folder, "elsewhere/0", image[::16, ::16], mask[::16, ::16])  # the base roots hold something
        carry_out(*SCAN, instance)
        return {asset: _timed(lambda asset=asset: carry_out(asset, SPLIT, instance))  # type: ignore[misc]
                for asset in ("manifest", "prompt_sets")}  # fmt: skip


def _cached_set() -> float:
    """Seconds of writing one prompt set of the cache, whole and synced, by one thread."""
    from sam_laplace_assets.domain.plan import Item, digest
    from sam_laplace_assets.storage.sam import SamStore

    with tempfile.TemporaryDirectory() as name:
        store, output = SamStore(Path(name) / "train"), _output()
        parts = {f"{at:04d}/{part}": digest(part) for at in range(SETS) for part in ("logits", "maps")}
        items = [Item(f"sample__{number:04d}", parts) for number in range(CACHED)]
        return _timed(lambda: [store.write(item, frozenset(parts), output) for item in items]) / (CACHED * SETS)


def _output() -> Any:
    """What SAM would say of one sample, as far as a disk can tell."""
    from sam_laplace_assets.storage.sam import ARRAYS, SampleOutput, SetOutput

    rng = np.random.default_rng(0)
    points = ((100, 200),) * 5
    facts = {"sample_id": "sample/0", "k_pairs": 5, "branch": 0, "sigma": 8.0,
             "points": {"pos": points, "neg": points}, "points_256": {"pos": points, "neg": points},
             "predicted_ious": [0.9, 0.8, 0.7]}  # fmt: skip
    names = [name for part in ARRAYS.values() for name in part]
    sets = [
        SetOutput(at, {name: rng.normal(size=(256, 256)).astype(np.float16) for name in names}, facts,
                  {part: {"made": "for this"} for part in ARRAYS})
        for at in range(SETS)
    ]  # fmt: skip
    return SampleOutput(sets)


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
