"""What must hold of posteriors: coming back as they were fitted, with a prior that the data chose."""

import dagster as dg

from sam_laplace_assets.assets.champion import Candidate
from sam_laplace_assets.checks.findings import WARN, Finding, by_partition
from sam_laplace_assets.settings import load_settings
from sam_laplace_assets.storage.posterior import PosteriorRun
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.runs import current_run


@dg.asset_check(asset="laplace_posterior", blocking=True)
def posterior_reloads(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """The posterior loads from its files onto the head that it names, and predicts there what it did when fitted."""
    project = Project.of(load_settings())
    return by_partition(context, project.fitted_splits(), lambda split: _reloaded(split, project))


@dg.asset_check(asset="laplace_posterior")
def prior_is_identified(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """Validation tells the prior precisions of the grid apart, and the best one is inside it."""
    project = Project.of(load_settings())
    return by_partition(context, project.fitted_splits(), lambda split: _prior(split, project))


def _reloaded(split: str, project: Project) -> Finding:
    """Raises where the files are damaged, or are no posterior of that head."""
    from sam_laplace_assets.domain.probe import TOLERANCE, Probe, probe_difference

    candidate = Candidate.open(_current(split, project), project)
    head, laplace = candidate.restore()
    recorded = candidate.posterior.meta.get("probe")
    if recorded is None:
        return Finding(facts={"probe": "none: it was fitted before predictions were recorded. It loads."})
    found = probe_difference(Probe(**recorded), laplace, head)
    told = f"predictions differ by {found:.1e} of the largest one; {TOLERANCE:.0e} is allowed"
    complaint = f"It no longer predicts what it did when it was fitted: {told}. Were torch or laplace-torch changed?"
    return Finding("" if found <= TOLERANCE else complaint, facts={"probe": told})


def _prior(split: str, project: Project) -> Finding:
    meta = PosteriorRun.open(project.posteriors / f"run_{_current(split, project)}").meta
    search = meta["prior_search"]
    facts = {"prior precision": search["chosen"], "validation NLL": min(search["val_nll"]),
             "validation NLL of the head": search["map_nll"]}  # fmt: skip
    return Finding(" ".join(meta["warnings"]), WARN, facts)


def _current(split: str, project: Project) -> str:
    return current_run(project.posterior_pointer(split), name=f"laplace_posterior[{split}]")
