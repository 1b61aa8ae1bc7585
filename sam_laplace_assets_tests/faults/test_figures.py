"""Figures of attacks are kept as they were counted."""

import pytest

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
