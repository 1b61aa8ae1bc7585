"""champion: which posterior holds the title, decided on today's validation pack."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from sam_laplace_assets.domain.plan import Item, Plan, Registered, Report, digest
from sam_laplace_assets.resources.tracking import model_names
from sam_laplace_assets.settings import ChampionSettings, Settings, load_settings
from sam_laplace_assets.storage.champion import PART, Champion, read_champion, read_history, require_champion
from sam_laplace_assets.storage.head import HeadRun
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.posterior import PosteriorRun
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.runs import Pointer

if TYPE_CHECKING:
    from sam_laplace_assets.domain.evaluation import Scores

CHAMPION_VERSION = "1"


@dg.asset(
    io_manager_key="champion_io", group_name="uncertainty", code_version=CHAMPION_VERSION, kinds={"json"},
    deps=[dg.AssetDep("laplace_posterior", partition_mapping=dg.AllPartitionMapping())],
)  # fmt: skip
def champion(validation_pack: Pack) -> Plan:
    """The posterior that holds the title: a candidate takes it only if it is better beyond doubt."""
    return plan_champion(validation_pack, load_settings())


@dataclass(frozen=True)
class Candidate:
    """A posterior that may hold the title, with the head that it belongs to."""

    posterior: PosteriorRun
    head: HeadRun

    @classmethod
    def open(cls, run_id: str, project: Project) -> "Candidate":
        """The posterior of this id and its head. Raises if a file of either is missing or damaged."""
        posterior = PosteriorRun.open(project.posteriors / f"run_{run_id}")
        return cls(posterior, HeadRun.open(project.checkpoints / f"run_{posterior.meta['head']['run_id']}"))

    def restore(self) -> tuple[Any, Any]:
        """The head as a module, and laplace-torch's posterior on it. Raises `Damaged` or `PosteriorRefused`."""
        from sam_laplace_assets.domain.head import restore_head
        from sam_laplace_assets.domain.posterior import restore_laplace

        head = restore_head(self.head.weights())
        return head, restore_laplace(head, self.posterior.state(), target_layer=self.posterior.meta["target_layer"])


def plan_champion(validation: Pack, settings: Settings) -> Plan:
    """One decision, taken anew when candidates, validation pack or rules have changed."""
    project = Project.of(settings)
    candidates = current_posteriors(project, settings.champion)
    if not candidates and read_champion(project.posteriors) is None:
        raise dg.Failure("There is no posterior to choose from. Materialise laplace_posterior first.",
                         allow_retries=False)  # fmt: skip
    made_from = {"candidates": candidates, "validation_pack": validation.data_version,
                 "rules": settings.champion.model_dump(), "version": CHAMPION_VERSION}  # fmt: skip
    item = Item("champion", {PART: digest(made_from)})

    def make(item: Item, parts: frozenset[str]) -> dict[str, Any]:
        return decide(candidates, validation, settings, project)

    return Plan([item], make=make, unit="decisions", report=lambda records: report(project, settings))


def current_posteriors(project: Project, rules: ChampionSettings) -> list[str]:
    """Run ids that the pointers of all training splits name; those made with launchpad overrides only if asked to."""
    pointers = [Pointer.read(path) for path in project.posterior_pointers()]
    return sorted(one.run_id for one in pointers if rules.allow_overrides or not _overridden(one, project))


def _overridden(pointer: Pointer, project: Project) -> bool:
    """Whether the posterior or the head that it was fitted to was made with launchpad overrides."""
    posterior = PosteriorRun.open(project.posteriors / f"run_{pointer.run_id}")
    return bool(pointer.overrides or posterior.meta["head"]["overrides"])


def decide(candidates: Sequence[str], validation: Pack, settings: Settings, project: Project) -> dict[str, Any]:
    """Score candidates and holder on one pack, and give the title to the best that beats the holder beyond doubt."""
    holder = read_champion(project.posteriors)
    names = sorted({*candidates, *([holder.run_id] if holder else [])})
    opened = {name: Candidate.open(name, project) for name in names}
    scores = {name: score_candidate(one, validation, settings) for name, one in opened.items()}
    nll = {name: one.means()["posterior_nll"] for name, one in scores.items()}
    compared = {name: _compare(scores[name], scores[holder.run_id], settings.champion)
                for name in candidates if holder and name != holder.run_id}  # fmt: skip
    able = [name for name in candidates if holder is None or (name in compared and compared[name].better)]
    winner = min(able, key=lambda name: nll[name]) if able else holder.run_id if holder else ""
    table = [{"run_id": name, **scores[name].means(), **(asdict(compared[name]) if name in compared else {})}
             for name in names]  # fmt: skip
    return {
        "run_id": winner, "training_split": opened[winner].posterior.meta["training_split"], "nll": nll[winner],
        "validation_pack": validation.data_version, "previous": holder.run_id if holder else None,
        "verdict": _verdict(winner, holder, nll), "candidates": table,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def score_candidate(candidate: Candidate, pack: Pack, settings: Settings) -> "Scores":
    """What SAM, the head and the posterior score on a pack, row by row."""
    from sam_laplace_assets.domain.evaluation import score
    from sam_laplace_assets.resources.checkpoints import resolve_device
    from sam_laplace_assets.storage.rows import read_rows

    head, laplace = candidate.restore()
    rows = read_rows(pack, memory_budget=settings.training.memory_budget)
    return score(head, laplace, rows, logit_clip=candidate.posterior.meta["logit_clip"],
                 batch_size=settings.training.batch_size, device=resolve_device(settings.sam.device))  # fmt: skip


def _compare(candidate: "Scores", holder: "Scores", rules: ChampionSettings) -> Any:
    from sam_laplace_assets.domain.champion import compare, per_image

    ours, theirs = (per_image(one.posterior_nll, one.images) for one in (candidate, holder))
    return compare(ours, theirs, **rules.model_dump(exclude={"allow_overrides"}))


def _verdict(winner: str, holder: Champion | None, nll: Mapping[str, float]) -> str:
    if holder is None:
        return f"{winner} is the first champion, with validation NLL {nll[winner]:.5f}."
    others = ", ".join(f"{name} {value:.5f}" for name, value in nll.items() if name != holder.run_id) or "nobody else"
    if winner == holder.run_id:
        return f"{winner} keeps the title with validation NLL {nll[winner]:.5f}, against {others}."
    return (
        f"{winner} takes the title with validation NLL {nll[winner]:.5f} from {holder.run_id} {nll[holder.run_id]:.5f}."
    )


def report(project: Project, settings: Settings) -> Report:
    """The decision in force, who was compared, and the alias in MLflow."""
    champion, last = require_champion(project.posteriors), read_history(project.posteriors)[-1]
    facts = {"champion": champion.run_id, "training split": champion.training_split, "validation NLL": champion.nll,
             "verdict": last["verdict"], "decisions so far": len(read_history(project.posteriors))}  # fmt: skip
    shown = ("run_id", "posterior_nll", "head_nll", "sam_nll", "head_iou", "sam_iou", "difference", "low", "high")
    table = [{name: row.get(name, "") for name in shown} for row in last["candidates"]]
    return Report(facts=facts, metrics={"champion_val_nll": champion.nll}, tables={"candidates": table},
                  champion=Registered(model_names(settings.mlflow)["posterior"], champion.run_id))  # fmt: skip
