from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from sam_laplace_assets.cli import cli
from sam_laplace_assets.commands.status import table
from sam_laplace_assets.freshness import Freshness, LastTime
from sam_laplace_assets.jobs import OF_THE_CHAMPION
from sam_laplace_assets_tests.small_project import SPLIT_ASSETS, add_sample

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def status(*arguments):
    """(split, asset) -> the cells of that line, and the last line."""
    result = CliRunner(env={"COLUMNS": "300"}).invoke(cli, ["status", *arguments])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[1:-2]]
    return {(row[0], row[1]): row[2:] for row in rows}, lines[-1]


def test_when_all_is_current_each_line_says_so(read_only):
    rows, summary = status()
    assert {row[-1] for row in rows.values()} == {"current"}
    assert summary == f"All {len(rows)} asset partitions are current."
    assert rows["train", "sam_cache"][:4] == ["24", "0", "0", "prompt sets"]


def test_what_is_stale_missing_and_follows_is_counted_apart(project):
    add_sample(project.folder, "stars/00", 90)
    project.change(prompt_generation={"num_promptsets_test": 3})
    rows, summary = status()
    assert rows["-", "all_samples"][:4] == ["16", "0", "1", "files"]
    assert rows["test", "prompt_sets"][:4] == ["0", "2", "0", "samples"]
    assert rows["train", "prompt_sets"][-1] == "follows all_samples"
    assert "asset partitions are not current. To make them: sam-laplace run" in summary


def test_only_the_splits_that_are_asked_for_are_shown(read_only):
    rows, _ = status("--split", "test")
    assert {split for split, _ in rows} == {"test", "-"}
    assert {asset for split, asset in rows if split == "test"} == {*SPLIT_ASSETS, *OF_THE_CHAMPION}


def test_what_waits_says_for_what(new_project):
    rows, _ = status("--split", "train")
    assert rows["train", "sam_cache"][:4] == ["-", "-", "-", "-"]
    assert rows["train", "sam_cache"][4] == "never"
    assert rows["train", "sam_cache"][5].startswith("waits: ")


def test_a_launchpad_override_that_holds_is_shown(project):
    assert project.materialise("sanity_panels", split="test", n=1).success
    assert status()[0]["test", "sanity_panels"][-1] == "current (as the launchpad said: n=1)"


def test_a_split_that_is_not_there_is_refused_naming_those_that_are(read_only):
    result = CliRunner().invoke(cli, ["status", "--split", "trian"])
    assert result.exit_code != 0
    assert "Known splits: train, val, test" in str(result.exception)


@pytest.mark.parametrize(("seconds", "told"), [
    (5, "5 s ago"), (119, "119 s ago"), (180, "3 min ago"), (3 * 3600, "3 h ago"), (12 * 86400, "12 d ago"),
])  # fmt: skip
def test_ages_are_told_in_the_largest_unit_that_fits(seconds, told):
    made = LastTime(1, NOW - timedelta(seconds=seconds))
    assert told in table([Freshness("champion", "", 1, last=made)], now=NOW)


def test_a_long_reason_is_cut_to_the_width_and_stays_on_its_line():
    found = Freshness("champion", "", 1, why="waits: " + "long\nreason " * 50)
    lines = table([found], now=NOW, width=140).splitlines()
    assert len(lines) == 4
    assert lines[1].endswith("…")
    assert len(lines[1]) <= 140
