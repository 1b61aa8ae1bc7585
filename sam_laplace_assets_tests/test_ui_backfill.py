"""A new split by clicking alone: its key is typed, its assets are launched, what failed is launched again."""

import re
import time

import dagster as dg
import pytest

from sam_laplace_assets.assets.graph import BY_NAME
from sam_laplace_assets_tests.browser import IN_A_BROWSER, keep, opened, serving, shown_panels
from sam_laplace_assets_tests.small_project import SPLIT_ASSETS, add_sample

NEW, EMPTY = "test-underwater", "test-nowhere"
FIRST_TWO = SPLIT_ASSETS[:2]
UNTIL_DONE = 300_000

pytestmark = [*IN_A_BROWSER, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def clicked(made_project, tmp_path_factory):
    """A project of its own, of which everything is made."""
    return made_project.copy(tmp_path_factory.mktemp("clicked"))


@pytest.fixture(scope="module")
def page(clicked):
    """Its UI, where nothing happens by itself."""
    with serving(clicked) as address, opened(address) as page:
        stop_all_automation(page)
        yield page


@pytest.fixture(scope="module")
def new_split(clicked, page):
    """What Dagster recorded while the assets of a new split were launched."""
    before = recorded(clicked)
    fill(clicked, NEW, seed=50)
    choose_assets(page, SPLIT_ASSETS)
    type_partition(page, NEW)
    expect_chosen(page, "1 partition")
    keep(page, "backfill-1-typed")
    launch(page)
    expect_success(page, clicked)
    keep(page, "backfill-2-run")
    return recorded(clicked) - before


@pytest.fixture(scope="module")
def failed_split(clicked, page, new_split):
    """What Dagster recorded while the new split was launched together with one that has no data."""
    before = recorded(clicked)
    choose_assets(page, FIRST_TWO)
    choose_partition(page, NEW)
    type_partition(page, EMPTY)
    expect_chosen(page, "2 partitions")
    keep(page, "backfill-3-two-splits")
    launch(page)
    wait_for_backfill(clicked, page.url.rpartition("/")[2])
    page.reload()
    page.get_by_text("100% completed").nth(1).wait_for()
    keep(page, "backfill-4-ended")
    return recorded(clicked) - before


def test_a_split_whose_key_was_typed_is_made_and_no_other(new_split):
    assert {(asset, split) for asset, split, _ in new_split} == {(asset, NEW) for asset in SPLIT_ASSETS}
    assert len(new_split) == len(SPLIT_ASSETS)


def test_a_new_split_shows_its_panels(page, new_split):
    assert shown_panels(page, NEW).evaluate("image => image.naturalWidth") > 0
    keep(page, "backfill-5-panels")


def test_a_split_without_data_does_not_stop_another(failed_split):
    assert {(asset, split) for asset, split, _ in failed_split} == {(asset, NEW) for asset in FIRST_TWO}


def test_a_split_without_data_fails_with_the_folder_that_was_looked_for(page, clicked, failed_split):
    page.goto(f"/assets/manifest?view=partitions&partition={EMPTY}")
    page.get_by_text("failed, and did not materialize this asset").wait_for()
    keep(page, "backfill-6-failed-partition")
    page.get_by_text("View logs").first.click()
    page.get_by_text(f"{clicked.folder / 'splits' / EMPTY} is not there").first.wait_for()
    keep(page, "backfill-7-failed-run")


def test_a_split_without_data_is_not_tried_again(clicked, failed_split):
    with clicked.instance() as instance:
        assert len(instance.get_runs(dg.RunsFilter(tags={"dagster/partition": EMPTY}))) == 1


def test_the_failed_split_alone_is_launched_again(page, clicked, failed_split):
    before = recorded(clicked)
    fill(clicked, EMPTY, seed=60)
    choose_assets(page, FIRST_TWO)
    page.get_by_role("button", name="Failed", exact=True).click()
    expect_chosen(page, "1 partition")
    keep(page, "backfill-8-failed-alone")
    launch(page)
    expect_success(page, clicked)
    page.goto(f"/assets/prompt_sets?view=partitions&partition={EMPTY}")
    page.get_by_text("Materialized", exact=True).first.wait_for()
    keep(page, "backfill-9-mended")
    assert {(asset, split) for asset, split, _ in recorded(clicked) - before} == {(one, EMPTY) for one in FIRST_TWO}


def fill(project, split, *, seed):
    """Two samples in the folder of a named split."""
    for number in range(2):
        add_sample(project.folder / "splits" / split, f"boxes/{number:02d}", seed + number)


def recorded(project):
    """All materialisations of all assets: asset, partition, and place in Dagster's log."""
    with project.instance() as instance:
        return {
            (asset, record.partition_key, record.storage_id)
            for asset in BY_NAME
            for record in instance.fetch_materializations(dg.AssetKey(asset), limit=1000).records
        }


def stop_all_automation(page):
    """Switch off all sensors and schedules, by clicking too."""
    page.goto("/automation")
    page.get_by_text("Select all", exact=True).click()
    page.get_by_role("button", name="Actions").click()
    page.get_by_role("menuitem", name="Stop").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Done").click()
    keep(page, "backfill-0-automation")


def choose_assets(page, assets):
    """Tick assets in the catalogue, then open the dialog that launches them."""
    page.goto("/assets")
    for asset in assets:
        page.locator("label", has=page.get_by_test_id(f"checkbox-{asset}")).click()
    with page.expect_event("requestfinished", answers_to("PartitionHealthQuery", len(assets))):
        page.get_by_role("button", name="Materialize selected").click()


def answers_to(operation, count):
    """True of the last of so many answered queries: what is chosen before the dialog knows the partitions is lost."""
    left = count

    def is_the_last(request):
        nonlocal left
        left -= request.url.endswith(operation)
        return left == 0

    return is_the_last


def type_partition(page, key):
    """Add a key to the splits that Dagster knows, and to the chosen ones."""
    page.get_by_role("button", name="Add a partition").click()
    page.get_by_placeholder("name", exact=True).fill(key)
    page.get_by_role("button", name="Save").click()


def choose_partition(page, key):
    """Choose a split from the list of those that Dagster knows, then close the list."""
    page.get_by_text("Select a partition or create one").click()
    page.get_by_role("menuitem").filter(has_text=key).click()
    page.get_by_text("Launch runs to materialize").click()


def expect_chosen(page, count):
    """Wait until the dialog says that so many partitions are chosen."""
    page.locator("div", has_text=re.compile(rf"^\s*Partition selection\s*{count}\s*$")).first.wait_for()


def launch(page):
    """Launch what the dialog says, then follow the link of the note that confirms it."""
    page.get_by_role("button", name="Launch").last.click()
    page.get_by_text("View", exact=True).last.click()
    page.wait_for_url("**/runs/**")


def expect_success(page, project):
    """Wait for the end of the run that the page shows; tell its errors if it failed."""
    ended = page.get_by_text("Success", exact=True).or_(page.get_by_text("Failure", exact=True)).first
    ended.wait_for(timeout=UNTIL_DONE)
    if ended.inner_text() != "Success":
        pytest.fail(errors_of(project, page.url.rpartition("/")[2]))


def wait_for_backfill(project, backfill_id, *, seconds=300):
    """Wait until all its runs have ended; the page shows that only after a while."""
    deadline = time.monotonic() + seconds
    with project.instance() as instance:
        while instance.get_backfill(backfill_id).status.value == "REQUESTED":
            assert time.monotonic() < deadline, f"backfill {backfill_id} does not end"
            time.sleep(1)


def errors_of(project, run_id):
    """What failed in a run."""
    with project.instance() as instance:
        events = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        return "\n".join(event.dagster_event.step_failure_data.error_display_string for event in events)
