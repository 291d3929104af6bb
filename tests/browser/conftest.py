"""Fixtures for Dagster's UI in a real browser: one service and one page per pytest worker, and screenshots."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dagster_home import ROOT, DagsterService
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tiny_pipeline import TINY, write_experiment

from fim_core.demo.export import write_export

ARTIFACTS = Path(os.environ.get("FIM_ARTIFACTS", ROOT / "artifacts")) / "browser"
# A machine without a display, and a container without user namespaces.
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
_PATIENCE_MILLISECONDS = 30_000
_SETTLE_MILLISECONDS = 400

Shot = Callable[[str], None]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no browser found; install Debian's with `apt-get install chromium`")
    with sync_playwright() as playwright:
        expect.set_options(timeout=_PATIENCE_MILLISECONDS)
        browser = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the experiment reads."""
    path = tmp_path_factory.mktemp("exports") / "day.csv"
    write_export(path, rows=300, seed=3)
    return path


@pytest.fixture(scope="session")
def service(browser: Browser, export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterService]:
    """`dagster dev` with the tiny experiment; started only if there is a browser."""
    data = {**TINY["data"], "sources": [{"name_or_path": str(export)}]}
    # The gate refuses a model of seconds, so the champion's check warns. So few rows have too few groups to hold out.
    experiment = write_experiment(
        tmp_path_factory.mktemp("experiment"),
        data=data,
        max_steps=8,
        eval_interval=4,
        checks={"held_out_share": {"severity": "off"}},
    )
    with DagsterService(tmp_path_factory.mktemp("home"), experiment) as service:
        yield service


@pytest.fixture
def page(browser: Browser, service: DagsterService) -> Iterator[Page]:
    """An empty page whose relative URLs refer to the service."""
    context = browser.new_context(
        base_url=service.url, viewport={"width": 1500, "height": 1300}, reduced_motion="reduce"
    )
    context.set_default_timeout(_PATIENCE_MILLISECONDS)
    yield context.new_page()
    context.close()


@pytest.fixture
def shot(page: Page) -> Shot:
    """Saves a screenshot of the page under a name."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        page.wait_for_timeout(_SETTLE_MILLISECONDS)
        page.screenshot(path=ARTIFACTS / f"{name}.png")

    return take
