"""What the README says is so."""

import itertools
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from sam_laplace_assets.assets.graph import ASSETS
from sam_laplace_assets.cli import cli
from sam_laplace_assets.partitions import splits, training_splits

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.split("#")[0].split() for block in re.findall(r"```sh\n(.*?)```", README, re.S)
            for line in block.splitlines() if line.strip()]  # fmt: skip
ROWS = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", README, re.M)


@pytest.mark.parametrize("target", [words[1] for words in COMMANDS if words[0] == "make"])
def test_every_make_target_that_it_names_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("command", [words[1] for words in COMMANDS if words[0].endswith("sam-laplace")])
def test_every_console_command_that_it_names_explains_itself(command):
    assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0


def test_it_names_all_console_commands_but_the_demos():
    named = {words[1] for words in COMMANDS if words[0].endswith("sam-laplace")}
    assert named == set(cli.commands) - {"demo"}


def test_its_table_has_every_asset_in_the_graphs_order_of_data():
    assert {name for name, _, _ in ROWS} == {asset.key.to_user_string() for asset in ASSETS}


def test_its_table_says_how_each_asset_is_partitioned():
    words = {None: "-", splits: "split", training_splits: "training split"}
    said = {name: partitioned.strip() for name, partitioned, _ in ROWS}
    assert said == {asset.key.to_user_string(): words[asset.partitions_def] for asset in ASSETS}


def test_its_picture_has_the_edges_of_the_graph():
    drawn = set(_edges(re.search(r"```mermaid\ngraph LR\n(.*?)```", README, re.S).group(1)))
    real = {(up.to_user_string(), asset.key.to_user_string()) for asset in ASSETS
            for up in asset.asset_deps[asset.key]}  # fmt: skip
    assert drawn == real


def test_its_links_lead_somewhere():
    anchors = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^#+ (.+)$", README, re.M)}
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert target in anchors if target.startswith("#") else (ROOT / target).exists(), target


def _edges(text):
    for line in text.strip().splitlines():
        stops = [part.split("&") for part in re.split(r'-- ".*?" -->|-->|-\.->', line)]
        for left, right in itertools.pairwise(stops):
            yield from ((a.strip(), b.strip()) for a in left for b in right)
