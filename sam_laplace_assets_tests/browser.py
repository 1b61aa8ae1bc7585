"""The real UI, webserver and daemon, in Debian's Chromium; screenshots are kept in .artifacts/."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from sam_laplace_assets.settings import SETTINGS_VARIABLE

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / ".artifacts" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run")  # fmt: skip
WAIT = 60_000

IN_A_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@contextmanager
def serving(project):
    """Run `sam-laplace dev` on a project; the address of its UI. What a terminal would show is in its dev.log.

    One at a time on a machine: MLflow's UI has one port.
    """
    with FileLock(Path(tempfile.gettempdir()) / "sam-laplace-ui.lock"):
        yield from _serving(project, _free_port())


def _serving(project, port):
    command = [sys.executable, "-m", "sam_laplace_assets.cli", "dev", "--port", str(port)]
    environment = os.environ | {
        SETTINGS_VARIABLE: str(project.config), "DAGSTER_HOME": str(project.folder / "dagster_home")
    }  # fmt: skip
    with (project.folder / "dev.log").open("wb") as terminal:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=terminal, stderr=terminal)
    try:
        _wait_for(f"http://127.0.0.1:{port}/server_info", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


@contextmanager
def opened(address):
    """A page of a browser that looks at this address."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1500, "height": 1100}, base_url=address)
        page.set_default_timeout(WAIT)
        yield page
        browser.close()


def keep(page, name):
    """Keep a screenshot."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def shown_panels(page, split):
    """The picture on the page of sanity_panels for one split; long Markdown waits behind a link."""
    page.goto(f"/assets/sanity_panels?view=partitions&partition={split}")
    page.get_by_text("Materialized", exact=True).first.wait_for()
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator('img[src^="data:image/png"]').first
    picture.wait_for()
    return picture


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
