"""evaluation: what SAM, the head and its posterior are worth on one split, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from sam_laplace_assets.assets.champion import Candidate
from sam_laplace_assets.assets.evaluation_findings import EVALUATION_VERSION, Judged, evaluate
from sam_laplace_assets.assets.evaluation_report import read_evaluation
from sam_laplace_assets.assets.splitting import grouping
from sam_laplace_assets.domain.plan import Item, Plan, Report
from sam_laplace_assets.overrides import FORCE, GO_ON, Overrides
from sam_laplace_assets.partitions import splits
from sam_laplace_assets.settings import DataSettings, Settings, load_settings
from sam_laplace_assets.storage.champion import Champion
from sam_laplace_assets.storage.evaluation import ASSET, sample_ids
from sam_laplace_assets.storage.manifest import Sample, open_manifest
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.project import Project, roots_of
from sam_laplace_assets.storage.reports import PART
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets.storage.weights import Damaged

RESAMPLES = 2000
BAND = 3


class EvaluationConfig(Overrides):
    """Launchpad fields of evaluation."""

    force: bool = FORCE
    resamples: int | None = Field(None, ge=100, description=f"bootstrap draws of images; {RESAMPLES} if empty")
    band: int | None = Field(None, ge=1, description=f"pixels of the boundary band on each side; {BAND} if empty")


@dg.asset(
    partitions_def=splits,
    io_manager_key="evaluation_io",
    retry_policy=GO_ON,
    group_name="uncertainty",
    pool="gpu",
    code_version=EVALUATION_VERSION,
    kinds={"table"},
    ins={"hdf5_pack": dg.AssetIn(partition_mapping=dg.IdentityPartitionMapping())},
)
def evaluation(
    context: dg.AssetExecutionContext, config: EvaluationConfig, champion: Champion, hdf5_pack: Pack,
    validation_pack: Pack,
) -> Plan:  # fmt: skip
    """SAM, SAM with scaled logits, the head and the Laplace predictive side by side, and whether uncertainty helps."""
    return plan_evaluation(context.partition_key, champion, hdf5_pack, validation_pack, load_settings(), config)


def plan_evaluation(
    split: str, champion: Champion, pack: Pack, validation: Pack, settings: Settings, config: EvaluationConfig
) -> Plan:
    """One report on one split, made again when champion, packs, groups or what is asked for have changed."""
    project = Project.of(settings)
    samples = samples_of(split, settings, project)
    judged = Judged(open_champion(champion.run_id, project), pack, validation, samples,
                    groups_of(sample_ids(pack, samples), settings.data), config.resamples or RESAMPLES,
                    config.band or BAND)  # fmt: skip
    item = Item(split, {PART: judged.provenance()})
    folder = project.report(ASSET, split)

    def report(records: Mapping[str, Any]) -> Report:
        return read_evaluation(folder, table_format=project.table_format) if records else Report()

    return Plan([item], make=lambda item, parts: evaluate(judged, settings), unit="reports", report=report,
                force=config.force, complete=pack.complete)  # fmt: skip


def open_champion(run_id: str, project: Project) -> Candidate:
    """The champion's posterior and head."""
    try:
        return Candidate.open(run_id, project)
    except (NotMade, Damaged) as error:
        raise dg.Failure(f"{run_id} holds the title and cannot be opened: {error}", allow_retries=False) from error


def samples_of(split: str, settings: Settings, project: Project) -> dict[str, Sample]:
    """safe_id -> sample, from the split's manifest; empty where that cannot be read."""
    try:
        roots = roots_of(settings.data, split)
        found = open_manifest(project.manifests, split, images_root=roots.images_root, masks_root=roots.masks_root)
    except (NotMade, ValueError, OSError):
        return {}
    return {sample.key: sample for sample in found}


def groups_of(ids: Sequence[str], data: DataSettings) -> tuple[str, ...] | None:
    """What each sample is drawn again with: its group of `data.group_by`, or itself; None without that setting."""
    if data.group_by is None:
        return None
    group = grouping(data)
    return tuple(f"group {group(one)}" if group(one) else f"sample {one}" for one in ids)
