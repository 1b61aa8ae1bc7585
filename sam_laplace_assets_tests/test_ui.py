"""The real UI, in a real browser, on a project that was made before."""

import pytest

from sam_laplace_assets_tests.browser import IN_A_BROWSER, ROOT, keep, opened, serving, shown_panels

pytestmark = IN_A_BROWSER


@pytest.fixture(scope="module")
def address(made_project):
    """Where the UI of a made project answers."""
    with serving(made_project) as address:
        yield address


@pytest.fixture
def page(address):
    with opened(address) as page:
        yield page


def test_the_terminal_shows_no_warning_that_is_no_fault(address, made_project):
    told = (made_project.folder / "dev.log").read_text()
    assert f"Serving dagster-webserver on {address}" in told
    assert (ROOT / "dagster.yaml").exists()
    assert "dagster.yaml" not in told
    assert "SupersessionWarning" not in told


def test_the_verdict_is_not_cut_off(page):
    page.goto("/assets/champion?view=overview")
    verdict = page.get_by_text("is the first champion").first
    verdict.wait_for()
    keep(page, "champion")
    assert verdict.evaluate("text => text.getBoundingClientRect().right") < beginning_of_the_side(page)


def beginning_of_the_side(page):
    """Where the column with the asset's definition begins, in pixels."""
    return page.get_by_text("Definition", exact=True).first.bounding_box()["x"]


def test_the_lineage_shows_the_four_groups(page):
    page.goto("/asset-groups")
    for group in ("data", "features", "model", "uncertainty"):
        page.get_by_text(group, exact=True).first.wait_for()
    keep(page, "lineage")


def test_a_partition_shows_its_panels(page):
    assert shown_panels(page, "train").evaluate("image => image.naturalWidth") > 500
    keep(page, "panels")


def test_the_splits_are_partitions(page):
    page.goto("/assets/sam_cache?view=partitions")
    for split in ("train", "val", "test"):
        page.get_by_text(split, exact=True).first.wait_for()
    keep(page, "partitions")
