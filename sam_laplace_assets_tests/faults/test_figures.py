"""Figures of attacks are kept as they were counted, and shown so in the README."""

import json

import pytest

from sam_laplace_assets_tests.faults import __main__ as table
from sam_laplace_assets_tests.faults import figures


def test_figures_come_back_group_by_group(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "KEPT", tmp_path)
    figures.keep("a key", group="security", tried=3, survived=3, gets="refused")
    figures.keep("a/cut file", group="bad input", tried=2, survived=1, gets="named")
    figures.keep("a/cut file", group="bad input", tried=2, survived=2, gets="named")
    found = figures.kept(tmp_path)
    assert [(one.name, one.tried, one.survived) for one in found] == [("a/cut file", 2, 2), ("a key", 3, 3)]


def test_more_cannot_survive_than_were_tried():
    with pytest.raises(ValueError, match="4 of 3"):
        figures.keep("nonsense", group="security", tried=3, survived=4, gets="")


def test_what_is_said_of_several_stages_is_summed(tmp_path):
    figures_of = [figures.Figure(f"damaged: {name}", "damaged files", 3, 3, gets) for name, gets in
                  (("pack", "made again: 1; refused: 2"), ("logits", "made again: 3"))]  # fmt: skip
    (summed,) = table.together(figures_of)
    assert (summed.name, summed.tried, summed.survived) == ("damaged (pack, logits)", 6, 6)
    assert summed.gets == "made again: 4; refused: 2"


def test_the_readme_shows_what_was_counted():
    counted = json.loads(table.RESULTS.read_text())
    assert f"{table.BEGIN}\n{table.markdown(counted)}{table.END}" in table.README.read_text()
