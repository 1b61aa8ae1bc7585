"""How a materialisation is told: log lines while it runs, metadata in the UI when it is done."""

import base64
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from sam_laplace_assets.domain.plan import Report
from sam_laplace_assets.resources.tracking import TrackedRun
from sam_laplace_assets.storage.materialise import Outcome

SECONDS_BETWEEN_LINES = 5.0
UNITS_BETWEEN_LINES = 100
LINES_FOR_UNITS = 100
"""At most: each line is an event of Dagster's and a point of MLflow's, which must not grow with the images."""
PREVIEW_ROWS = 12
DIGITS = 5
UNUSED = "No head is trained or judged on it"


class LoggedProgress:
    """Progress as log lines, now and then, with rate and time left."""

    def __init__(self, log: Any, name: str, run: TrackedRun) -> None:
        self._log, self._name, self._run = log, name, run
        self._started = self._told = time.monotonic()
        self._first: int | None = None
        self._told_units = 0

    def __call__(self, done: int, failed: int, total: int, unit: str) -> None:
        """Log a line when some seconds or units have passed since the last one, and at the end."""
        now = time.monotonic()
        if self._first is None:
            self._first = self._told_units = done
            return
        enough = max(UNITS_BETWEEN_LINES, total // LINES_FOR_UNITS)
        due = now - self._told >= SECONDS_BETWEEN_LINES or done - self._told_units >= enough
        if not due and done < total:
            return
        self._told, self._told_units = now, done
        told = f", {failed} failed" if failed else ""
        pace = _pace(done - self._first, total - done, now - self._started)
        self._log.info(f"{self._name}: {done}/{total} {unit}{told}, {pace}")
        self._run.log(Report(metrics={"done": done, "failed": failed}), step=done)


def _pace(done: int, left: int, seconds: float) -> str:
    """`12.3/s, 40 s left`, or seconds each where they are many."""
    each = seconds / max(done, 1)
    rate = f"{each:.1f} s each" if each > 1 else f"{1 / max(each, 1e-6):.1f}/s"
    return f"{rate}, {left * each:.0f} s left" if left else f"{rate}, done in {seconds:.1f} s"


def metadata_of(outcome: Outcome, report: Report, run: TrackedRun, *, limit: int | None = None) -> dict[str, Any]:
    """What the UI shows of a materialisation: what a reader must not miss, results, then how they came about.

    Args:
        outcome: what became of the plan.
        report: what the asset says of it.
        run: the tracked run.
        limit: of a trial, how many samples it was to have.
    """
    facts = _lacking(outcome, limit) | dict(report.facts)
    shown = {name: _fact(value) for name, value in facts.items()}
    shown |= {name: dg.MetadataValue.md(markdown_table(rows)) for name, rows in report.tables.items() if rows}
    shown |= {name: dg.MetadataValue.md(_picture(name, png)) for name, png in report.pictures.items()}
    if run.url:
        shown["MLflow run"] = dg.MetadataValue.md(f"[open this run]({run.url})")
    if run.problems:
        shown["not tracked"] = _fact(" ".join(f"{problem}." for problem in run.problems))
    return shown | {name: _fact(value) for name, value in _effort(outcome).items()}


def _lacking(outcome: Outcome, limit: int | None) -> dict[str, Any]:
    """In words, that not all is there; empty where all is."""
    told: dict[str, Any] = {}
    if not outcome.complete and limit is not None:
        told["trial"] = f"The first {limit} samples only. {UNUSED}; materialise it without `limit`."
    elif not outcome.complete:
        told["incomplete"] = f"What it was made from is a trial (`limit`) or lacks failed samples. {UNUSED}."
    if outcome.failed:
        told[f"{outcome.unit} failed"] = len(outcome.failed)
        rows = [{"item": key, "reason": reason} for key, reason in outcome.failed.items()]
        told["failed items"] = dg.MetadataValue.md(markdown_table(rows))
    return told


def _effort(outcome: Outcome) -> dict[str, float]:
    counts = outcome.counts()
    told = {f"{outcome.unit} {name}": counts[name] for name in ("made", "reused")}
    return told | {"seconds": counts["seconds"], f"{outcome.unit} per second": counts["made_per_second"]}


def _fact(value: Any) -> Any:
    """A number without the digits that nobody reads; a sentence as Markdown, since other text stays on one line."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return dg.MetadataValue.md(value) if isinstance(value, str) and " " in value else value


def step_error(event: dg.DagsterEvent) -> str:
    """What a failed step says, in the words of who raised it; empty if it says nothing."""
    failure = event.step_failure_data
    data = failure.user_failure_data
    if data is not None and data.description:
        return str(data.description)
    if failure.error is None:
        return ""
    return str((failure.error.cause or failure.error).message).strip()


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The first rows as a Markdown table."""
    if not rows:
        return "none"
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    shown = [f"| {' | '.join(line)} |" for line in lines[: PREVIEW_ROWS + 2]]
    more = len(rows) - PREVIEW_ROWS
    return "\n".join(shown) + (f"\n\nand {more} more rows" if more > 0 else "")


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _picture(name: str, png: bytes) -> str:
    return f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})"


@dg.logger({}, description="Messages of this package alone, as they are; for a terminal.")
def plain_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Prints what assets say, and errors; leaves out what the orchestrator says of itself."""
    logger = logging.Logger("sam_laplace_assets", level=logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logger.addHandler(handler)
    return logger


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = getattr(record, "dagster_meta", {})
        message = str(told.get("orig_message") or record.getMessage())
        return f"  {message}" if record.levelno < logging.WARNING else f"  {record.levelname.lower()}: {message}"
