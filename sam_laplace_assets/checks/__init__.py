"""What must hold of the data, by concept."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import dagster as dg

from sam_laplace_assets.checks.chain import nothing_is_lost_on_the_way
from sam_laplace_assets.checks.head import head_beats_sam
from sam_laplace_assets.checks.manifest import (
    every_class_is_judged,
    every_group_in_one_split,
    no_image_in_two_splits,
    no_image_of_it_in_another_split,
    no_sample_in_two_splits,
    splits_have_their_share,
)
from sam_laplace_assets.checks.pack import arrays_are_finite_and_in_range, pack_holds_the_rows_of_its_index
from sam_laplace_assets.checks.posterior import posterior_reloads, prior_is_identified

all_checks: list[dg.AssetChecksDefinition] = [
    no_sample_in_two_splits,
    no_image_in_two_splits,
    no_image_of_it_in_another_split,
    every_group_in_one_split,
    every_class_is_judged,
    splits_have_their_share,
    nothing_is_lost_on_the_way,
    pack_holds_the_rows_of_its_index,
    arrays_are_finite_and_in_range,
    head_beats_sam,
    posterior_reloads,
    prior_is_identified,
]


def in_one_step(checks: Sequence[dg.AssetChecksDefinition]) -> dg.AssetChecksDefinition:
    """The checks of one asset as one step: to start a process for each would take longer than they do."""
    functions = {spec.key: check for check in checks for spec in check.check_specs}
    (asset,) = {key.asset_key.to_python_identifier() for key in functions}
    specs = [spec for check in checks for spec in check.check_specs]
    pools = {pool for check in checks for pool in check.op.pools}

    @dg.multi_asset_check(name=f"checks_of_{asset}", specs=specs, can_subset=True, pool=next(iter(pools), None))
    def look(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        for key in [spec.key for spec in specs if spec.key in context.selected_asset_check_keys]:
            function = functions[key].op.compute_fn.decorated_fn  # type: ignore[union-attr]
            found = function(*([context] if function.__annotations__.get("context") else []))
            yield dg.AssetCheckResult(passed=found.passed, asset_key=key.asset_key, check_name=key.name,
                                      severity=found.severity, metadata=found.metadata)  # fmt: skip

    return look


def _asset_of(check: dg.AssetChecksDefinition) -> str:
    return next(iter(check.check_specs)).asset_key.to_user_string()


check_steps = [in_one_step(list(checks)) for _, checks in groupby(sorted(all_checks, key=_asset_of), key=_asset_of)]
