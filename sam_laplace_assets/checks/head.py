"""What should hold of heads: being worth more than SAM alone."""

import dagster as dg

from sam_laplace_assets.checks.findings import WARN, Finding, by_partition
from sam_laplace_assets.reporting import markdown_table
from sam_laplace_assets.settings import Settings, load_settings
from sam_laplace_assets.storage.head import HeadRun
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.runs import current_run
from sam_laplace_assets.storage.validation import open_validation_pack


@dg.asset_check(asset="head_checkpoint", pool="gpu")
def head_beats_sam(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    """On the validation pack the head has a higher IoU and a lower NLL than SAM, means over images."""
    settings = load_settings()
    there = Project.of(settings).trained_splits()
    return by_partition(context, there, lambda split: compare(scores_of(split, settings)))


def scores_of(split: str, settings: Settings) -> dict[str, float]:
    """IoU and NLL of SAM and of the current head of a split, in one pass over the validation pack."""
    from sam_laplace_assets.domain.evaluation import score_head
    from sam_laplace_assets.domain.head import restore_head
    from sam_laplace_assets.resources.checkpoints import resolve_device
    from sam_laplace_assets.storage.rows import read_rows

    project = Project.of(settings)
    run_id = current_run(project.head_pointer(split), name=f"head_checkpoint[{split}]")
    head = HeadRun.open(project.checkpoints / f"run_{run_id}")
    rows = read_rows(open_validation_pack(project.validation_pack), memory_budget=settings.training.memory_budget)
    return score_head(restore_head(head.weights()), rows, target_layer=settings.laplace.target_layer,
                      logit_clip=float(head.config["training"]["logit_clip"]),
                      batch_size=settings.training.batch_size, device=resolve_device(settings.sam.device))  # fmt: skip


def compare(scores: dict[str, float]) -> Finding:
    """A warning where the head is not better than SAM by IoU and by NLL."""
    by = []
    if scores["head_iou"] <= scores["sam_iou"]:
        by.append(f"IoU ({scores['head_iou']:.4f}, SAM {scores['sam_iou']:.4f})")
    if scores["head_nll"] >= scores["sam_nll"]:
        by.append(f"NLL ({scores['head_nll']:.5f}, SAM {scores['sam_nll']:.5f})")
    table = [{"": name, "IoU": scores[f"{name.lower()}_iou"], "NLL": scores[f"{name.lower()}_nll"]}
             for name in ("SAM", "head")]  # fmt: skip
    complaint = f"On the validation pack the head is no better than SAM by {' and '.join(by)}." if by else ""
    return Finding(complaint, WARN, {"scores": dg.MetadataValue.md(markdown_table(table))})
