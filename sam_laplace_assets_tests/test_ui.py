"""The real UI, in a real browser, on a project that was made before. Screenshots are kept in .artifacts/."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from sam_laplace_assets.settings import SETTINGS_VARIABLE

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / ".artifacts" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run")  # fmt: skip
WAIT = 60_000

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def address(made_project):
    """Where the UI of a made project answers."""
    port = _free_port()
    command = [sys.executable, "-m", "sam_laplace_assets.cli", "dev", "--port", str(port)]
    environment = os.environ | {
        SETTINGS_VARIABLE: str(made_project.config), "DAGSTER_HOME": str(made_project.folder / "dagster_home")
    }  # fmt: skip
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(f"http://127.0.0.1:{port}/server_info", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


@pytest.fixture
def page(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1500, "height": 1100}, base_url=address)
        page.set_default_timeout(WAIT)
        yield page
        browser.close()


def test_the_lineage_shows_the_four_groups(page):
    page.goto("/asset-groups")
    for group in ("data", "features", "model", "uncertainty"):
        page.get_by_text(group, exact=True).first.wait_for()
    _keep(page, "lineage")


def test_a_partition_shows_its_panels(page):
    page.goto("/assets/sanity_panels?view=partitions&partition=train")
    page.get_by_text("Materialized", exact=True).first.wait_for()
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator('img[src^="data:image/png"]').first
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 500
    _keep(page, "panels")


def test_the_splits_are_partitions(page):
    page.goto("/assets/sam_cache?view=partitions")
    for split in ("train", "val", "test"):
        page.get_by_text(split, exact=True).first.wait_for()
    _keep(page, "partitions")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url, server, *, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended with {server.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"{url} did not answer within {seconds} s")


def _keep(page, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
