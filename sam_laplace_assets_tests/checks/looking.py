"""Carrying out a check on files, without a run."""

from types import SimpleNamespace

from sam_laplace_assets.checks.findings import PARTITION_TAG


def look(check, split=None):
    """What a check says in a run about one split, or about none."""
    function = check.node_def.compute_fn.decorated_fn
    if "context" not in function.__annotations__:
        return function()
    return function(SimpleNamespace(run=SimpleNamespace(tags={PARTITION_TAG: split} if split else {})))


def words(result):
    """All that a reader is told, as one text."""
    return "; ".join(f"{name}: {value.value}" for name, value in result.metadata.items())


def warns(result):
    """Whether it does not hold, and that is only a warning."""
    return not result.passed and result.severity.value == "WARN"
