"""Which benchmarks there are: name -> what measures it."""

from collections.abc import Mapping
from importlib import import_module

from sam_laplace_assets_tests.benchmarks.harness import Benchmark

MODULES = ("sam", "stage", "training", "posterior", "pack", "incremental", "workers", "scale", "startup", "gpu")


def _found() -> Mapping[str, Benchmark]:
    """The `BENCHMARKS` of each module, in order; the heavy imports are inside their functions."""
    found: dict[str, Benchmark] = {}
    for name in MODULES:
        found |= import_module(f"sam_laplace_assets_tests.benchmarks.bench_{name}").BENCHMARKS
    return found


BENCHMARKS = _found()
