"""Each stage is killed at random moments; what it leaves is whole, and the next run goes on."""

import numpy as np
import pytest

from sam_laplace_assets_tests.faults.crashing import ATTACKED, Stages
from sam_laplace_assets_tests.faults.figures import keep

pytestmark = pytest.mark.faults
TIMES = 20


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    with Stages(tmp_path_factory.mktemp("killed")) as stages:
        yield stages


@pytest.mark.parametrize("asset", ATTACKED)
def test_a_stage_that_is_killed_at_any_moment_loses_nothing_and_is_gone_on_with(stages, asset):
    moments = np.random.default_rng(list(asset.encode())).uniform(0, stages.of(asset).seconds, TIMES)
    died = sum(stages.attack(asset, kill_after=float(moment)) for moment in moments)
    keep(f"sigkill at random: {asset}", group="killed anywhere", tried=died, survived=died,
         gets="goes on where it was; nothing made twice")  # fmt: skip
    assert died  # one that was faster than the undisturbed one had ended by then
