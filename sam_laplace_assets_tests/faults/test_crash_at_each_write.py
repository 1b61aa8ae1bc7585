"""Each stage dies at one write, sync or rename after the other; what it leaves is whole, and the next run goes on."""

import pytest

from sam_laplace_assets_tests.faults.crashing import ATTACKED, Stages
from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.faults.nursery import FAULTS

MOST, MOST_OF_SLOW = 12, {"evaluation": 8}
"""Losses of power of one stage; crashes are tried at all of its writes, syncs and renames."""
GETS = "whole files or none; the next run goes on, makes nothing twice, and ends with the same content"


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Of a project of which nothing was made before."""
    with Stages(tmp_path_factory.mktemp("crashing")) as stages:
        yield stages


@pytest.fixture(scope="module")
def stages_again(tmp_path_factory):
    """Of one of which all was made before, and some of the data have changed since."""
    with Stages(tmp_path_factory.mktemp("crashing-again"), again=True) as stages:
        yield stages


def spread(count, most):
    """At most so many of `count` numbers, evenly; the last one among them."""
    most = min(most, count)
    return [(number + 1) * count // most - 1 for number in range(most)]


@pytest.mark.parametrize("asset", ATTACKED)
def test_a_stage_that_dies_at_a_write_loses_nothing_and_is_gone_on_with(stages, asset):
    for number, at in enumerate(spread(len(stages.of(asset).events), 3)[:2]):
        assert stages.attack(asset, at=at, power=number % 2 == 0)


@pytest.mark.faults
@pytest.mark.parametrize("asset", ATTACKED)
def test_a_stage_that_dies_at_each_write_loses_nothing_and_is_gone_on_with(stages, asset):
    every = range(len(stages.of(asset).events))
    die_at_writes(stages, asset, every, name=f"crash at every write, sync and rename: {asset}", power=False)


@pytest.mark.faults
@pytest.mark.parametrize("asset", ATTACKED)
def test_a_stage_whose_power_goes_while_it_is_made_anew_loses_nothing_and_is_gone_on_with(stages_again, asset):
    some = spread(len(stages_again.of(asset).events), MOST_OF_SLOW.get(asset, MOST))
    die_at_writes(stages_again, asset, some, name=f"power lost at writes, syncs and renames: {asset}", power=True)


def die_at_writes(stages, asset, deaths, *, name, power):
    died = sum(stages.attack(asset, at=at, power=power) for at in deaths)
    keep(name, group="killed anywhere", tried=died, survived=died, gets=GETS)
    assert died >= 0.8 * len(deaths)  # threads that write do not always count to the same number


@pytest.mark.parametrize("fault", FAULTS)
def test_the_attack_finds_a_storage_layer_that_is_not_careful(stages, fault):
    with pytest.raises(AssertionError, match="half made"):
        lose_power_at_each_write(stages, "prompt_sets", fault=fault)


def lose_power_at_each_write(stages, asset, **how):
    for at in range(len(stages.of(asset).events)):
        stages.attack(asset, at=at, power=True, **how)
