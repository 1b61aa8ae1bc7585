"""What must hold of the data, by concept."""

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

all_checks = [
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
