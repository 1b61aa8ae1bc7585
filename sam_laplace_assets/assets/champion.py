"""champion: which posterior holds the title, decided on today's validation pack."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from sam_laplace_assets.domain.plan import Item, Plan, Registered, Report, digest
from sam_laplace_assets.overrides import GO_ON, Overrides
from sam_laplace_assets.resources.tracking import model_names
from sam_laplace_assets.settings import ChampionSettings, Settings, load_settings
from sam_laplace_assets.storage import inside
from sam_laplace_assets.storage.champion import (
    PART,
    Champion,
    in_force,
    is_there,
    other_holders,
    previous_holder,
    read_champion,
    read_history,
    read_rejected,
    require_champion,
)
from sam_laplace_assets.storage.head import HeadRun
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.posterior import PosteriorRun
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.runs import Pointer
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.weights import Damaged

if TYPE_CHECKING:
    from sam_laplace_assets.domain.champion import Comparison
    from sam_laplace_assets.domain.evaluation import Scores

CHAMPION_VERSION = "1"
PREVIOUS = "previous"
SCORES = ("run_id", "posterior_nll", "head_nll", "sam_nll", "head_iou", "sam_iou")
DIFFERENCE = ("run_id", "difference", "low", "high")
"""Columns of two tables: as one they are wider than the champion's page, which cuts off what is beside them."""
RUN_ID = r"^[a-z0-9][a-z0-9_-]*$"


class ChampionConfig(Overrides):
    """Launchpad fields of champion."""

    title_to: str | None = Field(
        None,
        pattern=RUN_ID,
        description="give the title by hand: the run id of a posterior, or 'previous' for the holder before this",
    )


@dg.asset(
    io_manager_key="champion_io",
    retry_policy=GO_ON,
    group_name="uncertainty",
    code_version=CHAMPION_VERSION,
    kinds={"json"},
    deps=[dg.AssetDep("laplace_posterior", partition_mapping=dg.AllPartitionMapping())],
)
def champion(context: dg.AssetExecutionContext, config: ChampionConfig, validation_pack: Pack) -> Plan:
    """The posterior that holds the title: a candidate takes it only if it is better beyond doubt."""
    by = root_run(context) if config.title_to else None
    return plan_champion(validation_pack, load_settings(), title_to=config.title_to, by=by)


def root_run(context: dg.AssetExecutionContext) -> str:
    """The run that this one, and every other retry of it, began as."""
    return context.run.tags.get("dagster/root_run_id") or context.run.run_id


@dataclass(frozen=True)
class Candidate:
    """A posterior that may hold the title, with the head that it belongs to."""

    posterior: PosteriorRun
    head: HeadRun

    @classmethod
    def open(cls, run_id: str, project: Project) -> "Candidate":
        """The posterior of this id and its head. Raises if a file of either is missing or damaged."""
        posterior = PosteriorRun.open(project.posteriors / f"run_{run_id}")
        head = inside.plain(posterior.meta["head"]["run_id"])
        return cls(posterior, HeadRun.open(project.checkpoints / f"run_{head}"))

    def restore(self) -> tuple[Any, Any]:
        """The head as a module, and laplace-torch's posterior on it. Raises `Damaged` or `PosteriorRefused`."""
        from sam_laplace_assets.domain.head import restore_head
        from sam_laplace_assets.domain.posterior import restore_laplace

        head = restore_head(self.head.weights())
        return head, restore_laplace(head, self.posterior.state(), target_layer=self.posterior.meta["target_layer"])


def plan_champion(validation: Pack, settings: Settings, *, title_to: str | None = None, by: str | None = None) -> Plan:
    """One decision, taken anew when candidates, validation pack or rules have changed, or by hand.

    Args:
        validation: what all are scored on.
        settings: where they are, and the rules.
        title_to: who gets the title by hand, whatever it scores.
        by: the run that was told so; the title moves once for it, however often it is retried.
    """
    project = Project.of(settings)
    last, rejected = in_force(project.posteriors) or {}, read_rejected(project.posteriors)
    if by is not None and last.get("by_hand") == by:
        title_to = None
    if title_to is not None:
        title_to, rejected = hand_over(title_to, rejected, project)
    candidates, lost = current_posteriors(project, settings.champion, rejected=rejected)
    if not candidates and not last:
        raise dg.Failure(" ".join(["There is no posterior to choose from. Materialise laplace_posterior first.",
                                   *_left_out(lost)]), allow_retries=False)  # fmt: skip
    made_from = {"candidates": candidates, "validation_pack": validation.data_version,
                 "rules": settings.champion.model_dump(), "version": CHAMPION_VERSION}  # fmt: skip
    item = Item("champion", {PART: digest(made_from)})

    def make(item: Item, parts: frozenset[str]) -> dict[str, Any]:
        decision = decide(candidates, validation, settings, project, title_to=title_to)
        verdict = " ".join([decision["verdict"], *_left_out(lost)])
        return decision | {"verdict": verdict, "rejected": sorted(rejected), "after": last.get("decision"),
                           "by_hand": by if title_to else None}  # fmt: skip

    return Plan([item], make=make, unit="decisions", report=lambda records: report(project, settings, lost),
                force=title_to is not None)  # fmt: skip


def hand_over(title_to: str, rejected: frozenset[str], project: Project) -> tuple[str, frozenset[str]]:
    """Who gets the title by hand, and which posteriors may not win it from then on: the one that loses it, too."""
    holder = read_champion(project.posteriors)
    if holder is None:
        raise dg.Failure("Nobody holds the title yet. Materialise champion first.", allow_retries=False)
    heir = previous_holder(project.posteriors) if title_to == PREVIOUS else title_to
    if heir is None:
        raise dg.Failure(_none_to_go_back_to(holder.run_id, project), allow_retries=False)
    if heir == holder.run_id:
        raise dg.Failure(f"{heir} holds the title already.", allow_retries=False)
    if not is_there(project.posteriors, heir):
        there = sorted(path.name.removeprefix("run_") for path in project.posteriors.glob("run_*")
                       if is_there(project.posteriors, path.name.removeprefix("run_")))  # fmt: skip
        raise dg.Failure(f"There is no posterior {heir}. Those that are there: {', '.join(there) or 'none'}.",
                         allow_retries=False)  # fmt: skip
    return heir, (rejected | {holder.run_id}) - {heir}


def _none_to_go_back_to(holder: str, project: Project) -> str:
    others = other_holders(project.posteriors)
    if not others:
        return (f"{holder} is the only posterior that has held the title, so there is none to go back to. "
                "Name another one's run id to give it the title.")  # fmt: skip
    there = [name for name in others if is_there(project.posteriors, name)]
    if not there:
        return (f"Of those that held the title only {holder} is still there. "
                "Name another one's run id to give it the title.")  # fmt: skip
    return f"All others that held it lost it by hand: {', '.join(there)}. Name one to give it back."


def current_posteriors(
    project: Project, rules: ChampionSettings, *, rejected: Set[str] = frozenset()
) -> tuple[list[str], dict[str, str]]:
    """Who may win: run ids that the pointers of all training splits name, without those that were rejected.

    Returns:
        Those that can be opened, made with launchpad overrides only if asked to; and why others cannot be.
    """
    able, lost = [], {}
    for pointer in map(Pointer.read, project.posterior_pointers()):
        if pointer.run_id in rejected or (pointer.overrides and not rules.allow_overrides):
            continue
        try:
            posterior = Candidate.open(pointer.run_id, project).posterior
        except (NotMade, Damaged) as error:
            lost[pointer.run_id] = str(error)
        else:
            if rules.allow_overrides or not posterior.meta["head"]["overrides"]:
                able.append(pointer.run_id)
    return sorted(able), lost


def _left_out(lost: Mapping[str, str]) -> list[str]:
    return [f"{name} was left out: {why}" for name, why in sorted(lost.items())]


def decide(
    candidates: Sequence[str], validation: Pack, settings: Settings, project: Project, *, title_to: str | None = None
) -> dict[str, Any]:
    """Score candidates and holder on one pack, and give the title to the best that beats the holder beyond doubt.

    With `title_to`, that one gets it whatever it scores, even if the holder cannot be opened.
    """
    holder = read_champion(project.posteriors)
    opened = {name: Candidate.open(name, project) for name in [*candidates, *([title_to] if title_to else [])]}
    if holder is not None:
        opened |= _open_holder(holder.run_id, project, needed=title_to is None)
    names = sorted(opened)
    scores = {name: score_candidate(one, validation, settings) for name, one in opened.items()}
    nll = {name: one.means()["posterior_nll"] for name, one in scores.items()}
    compared = {name: _compare(scores[name], scores[holder.run_id], settings.champion)
                for name in names if holder and holder.run_id in opened and name != holder.run_id}  # fmt: skip
    winner = title_to or _winner(candidates, holder, nll, compared)
    table = [{"run_id": name, **scores[name].means(), **(asdict(compared[name]) if name in compared else {})}
             for name in names]  # fmt: skip
    return {
        "run_id": winner, "training_split": opened[winner].posterior.meta["training_split"], "nll": nll[winner],
        "validation_pack": validation.data_version, "previous": holder.run_id if holder else None,
        "verdict": _verdict(winner, holder, nll, by_hand=title_to is not None), "candidates": table,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _open_holder(run_id: str, project: Project, *, needed: bool) -> dict[str, Candidate]:
    """The holder, to be scored; nothing if it cannot be opened and is not needed."""
    try:
        return {run_id: Candidate.open(run_id, project)}
    except (NotMade, Damaged) as error:
        if not needed:
            return {}
        told = (f"{run_id} holds the title and cannot be opened: {error} Put that run back, or give the title to "
                "another: sam-laplace rollback <run id>.")  # fmt: skip
        raise dg.Failure(told, allow_retries=False) from error


def _winner(
    candidates: Sequence[str], holder: Champion | None, nll: Mapping[str, float], compared: Mapping[str, "Comparison"]
) -> str:
    """The best of those that beat the holder, else the holder; a first title goes to the best outright."""
    able = [name for name in candidates if holder is None or (name in compared and compared[name].better)]
    if able or holder is None:
        return min(able, key=lambda name: nll[name])
    return holder.run_id


def score_candidate(candidate: Candidate, pack: Pack, settings: Settings) -> "Scores":
    """What SAM, the head and the posterior score on a pack, row by row."""
    from sam_laplace_assets.domain.evaluation import score
    from sam_laplace_assets.resources.checkpoints import resolve_device
    from sam_laplace_assets.storage.rows import read_rows

    head, laplace = candidate.restore()
    rows = read_rows(pack, memory_budget=settings.training.memory_budget)
    posterior = candidate.posterior
    return score(head, laplace, rows, logit_clip=posterior.meta["logit_clip"], logit_scale=posterior.logit_scale,
                 batch_size=settings.training.batch_size, device=resolve_device(settings.sam.device))  # fmt: skip


def _compare(candidate: "Scores", holder: "Scores", rules: ChampionSettings) -> "Comparison":
    from sam_laplace_assets.domain.bootstrap import per_image
    from sam_laplace_assets.domain.champion import compare

    ours, theirs = (per_image(one.posterior_nll, one.images) for one in (candidate, holder))
    return compare(ours, theirs, **rules.model_dump(exclude={"allow_overrides"}))


def _verdict(winner: str, holder: Champion | None, nll: Mapping[str, float], *, by_hand: bool) -> str:
    if by_hand and holder is not None:
        scored = f"{nll[holder.run_id]:.5f}" if holder.run_id in nll else "which cannot be opened"
        return (f"{winner} (validation NLL {nll[winner]:.5f}) was given the title by hand; {holder.run_id} "
                f"({scored}) lost it and cannot win it again.")  # fmt: skip
    if holder is None:
        return f"{winner} is the first champion, with validation NLL {nll[winner]:.5f}."
    others = ", ".join(f"{name} {value:.5f}" for name, value in nll.items() if name != holder.run_id) or "nobody else"
    if winner == holder.run_id:
        return f"{winner} keeps the title with validation NLL {nll[winner]:.5f}, against {others}."
    return (
        f"{winner} takes the title with validation NLL {nll[winner]:.5f} from {holder.run_id} {nll[holder.run_id]:.5f}."
    )


def report(project: Project, settings: Settings, lost: Mapping[str, str]) -> Report:
    """The decision in force, who was compared and who could not be, and the alias in MLflow."""
    champion, last = require_champion(project.posteriors), in_force(project.posteriors) or {}
    candidates = last.get("candidates", ())
    facts = {"champion": champion.run_id, "verdict": last["verdict"], "training split": champion.training_split,
             "validation NLL": champion.nll, "decisions so far": len(read_history(project.posteriors))}  # fmt: skip
    compared = [row for row in candidates if DIFFERENCE[-1] in row]
    tables = {"candidates": _columns(candidates, SCORES), "against the holder": _columns(compared, DIFFERENCE)}
    return Report(warnings=_left_out(lost), facts=facts, metrics={"champion_val_nll": champion.nll}, tables=tables,
                  champion=Registered(model_names(settings.mlflow)["posterior"], champion.run_id))  # fmt: skip


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in names} for row in rows]
