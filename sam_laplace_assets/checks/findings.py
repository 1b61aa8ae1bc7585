"""What a check says: whether it holds, how bad it is if not, and why, in words for the UI."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dagster as dg

from sam_laplace_assets.storage.store import NotMade

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN
PARTITION_TAG = "dagster/partition"
SHOWN = 10
IN_WORDS = (ValueError, OSError, NotMade)
BREAKAGE = (LookupError, TypeError, RuntimeError)
"""What a damaged JSON or HDF5 file ends in that no reader foresaw."""


@dataclass(frozen=True)
class Finding:
    """What a look at one thing came to.

    Attributes:
        complaint: why it does not hold; empty if it does.
        severity: how bad that is.
        facts: name -> what a reader is told either way.
    """

    complaint: str = ""
    severity: dg.AssetCheckSeverity = ERROR
    facts: Mapping[str, Any] = field(default_factory=dict)


def whole(look: Callable[[], Finding]) -> dg.AssetCheckResult:
    """The result of one look at an asset without partitions."""
    found = _guarded(look)
    return _result([found], {"found": found.complaint or "holds", **found.facts})


def by_partition(
    context: dg.AssetCheckExecutionContext, there: Sequence[str], look: Callable[[str], Finding]
) -> dg.AssetCheckResult:
    """The result of a look at the partition that the run is about; at all that are there, where it is about none."""
    partition = context.run.tags.get(PARTITION_TAG)
    findings = {name: _guarded(partial(look, name)) for name in ([partition] if partition else there)}
    if not findings:
        return whole(lambda: Finding("There is nothing to look at. Materialise a partition first."))
    told = {name: found.complaint or "holds" for name, found in findings.items()}
    told |= {f"{name}: {fact}": value for name, found in findings.items() for fact, value in found.facts.items()}
    return _result(list(findings.values()), told)


def _result(findings: Sequence[Finding], told: Mapping[str, Any]) -> dg.AssetCheckResult:
    """It warns only where nothing is an error."""
    broken = [found for found in findings if found.complaint]
    severity = WARN if broken and all(found.severity is WARN for found in broken) else ERROR
    return dg.AssetCheckResult(passed=not broken, severity=severity, metadata=told)


def listed(names: Collection[str]) -> str:
    """`a, b and 3 more`."""
    shown = ", ".join(sorted(names)[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown


def _guarded(look: Callable[[], Finding]) -> Finding:
    """What a look came to; one that could not read what it looks at says why."""
    try:
        return look()
    except IN_WORDS as error:
        return Finding(str(error) or type(error).__name__)
    except BREAKAGE as error:
        why = f"{type(error).__name__}: {error}"
        return Finding(f"It cannot be looked at ({why}). If a file is damaged, delete it and materialise it again.")
