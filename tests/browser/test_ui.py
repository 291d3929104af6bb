"""User actions in Dagster's UI, performed by clicking."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from dagster_home import DagsterService
from playwright.sync_api import Locator, Page, expect

from fim_core.quality.run import load_checks

Shot = Callable[[str], None]

pytestmark = pytest.mark.browser

PLOTS = 5
"""Numbers of a training run that Dagster plots."""
RUN_MILLISECONDS = 600_000
"""A run of the tiny experiment takes about 40 s on two idle cores."""


def materialize_all(page: Page) -> None:
    """Materialize everything from the asset graph, open the run, and wait for its end."""
    page.goto("/asset-groups")
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_role("link", name="View", exact=True).click()
    expect(page.get_by_text(re.compile("^(Success|Failure)$")).first).to_be_visible(timeout=RUN_MILLISECONDS)


def expect_check(page: Page, asset: str, check: str, result: str) -> None:
    """Select a check in the asset's list and read its result."""
    page.goto(f"/assets/{asset}?view=checks")
    page.get_by_text(check, exact=True).first.click()
    expect(page.locator(f'[data-tooltip="{result}"]')).to_be_visible()


def poison(export: Path) -> None:
    """Truncate the JSON of every third INPUT, like an export with a limit on cell length."""
    with export.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    place = header.index("INPUT")
    for row in rows[::3]:
        row[place] = row[place][:40]
    with export.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def test_all_assets_are_materialized_from_the_graph(page: Page, shot: Shot) -> None:
    materialize_all(page)
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    shot("1_run")

    page.goto("/asset-groups")
    expect(page.locator("svg").get_by_text("trained_checkpoint")).to_be_visible()
    shot("2_graph")

    expect_check(page, "fim_prompts", "rejected_share", "Passed")
    expect(page.get_by_text("Succeeded", exact=True)).to_have_count(len(load_checks("fim_prompts")))
    shot("3_checks")

    page.goto("/assets/trained_checkpoint")
    assert_drawn(page.get_by_role("row", name="loss_curve").get_by_role("img", name="plot"))
    shot("4_loss")
    page.get_by_text("Plots", exact=True).click()
    expect(page.locator("canvas")).to_have_count(PLOTS)
    shot("4_plots")

    page.goto("/assets/tokenized_dataset")
    assert_drawn(page.get_by_role("row", name="response_lengths").get_by_role("img", name="plot"))

    page.goto("/assets/evaluation_report")
    assert_drawn(page.get_by_role("row", name="exact_match_by_version").get_by_role("img", name="plot"))
    shot("4_report_asset")
    page.get_by_role("row", name="report").get_by_text("[Show Markdown]").first.click()
    report = page.get_by_role("dialog")
    expect(report.get_by_role("heading", name="evaluation")).to_be_in_viewport()
    expect(report.get_by_text("The gate refuses this model")).to_be_visible()
    expect(report.get_by_role("img", name="plot")).to_have_count(3)
    shot("4_report")


def assert_drawn(picture: Locator) -> None:
    expect(picture).to_be_visible()
    assert picture.evaluate("picture => picture.complete && picture.naturalWidth") > 400


def test_a_truncated_export_is_stopped(page: Page, shot: Shot, export: Path, service: DagsterService) -> None:
    poison(export)
    materialize_all(page)
    expect(page.get_by_text("Failure", exact=True).first).to_be_visible()
    expect(page.get_by_text("Not executed (4)")).to_be_visible()
    shot("5_poisoned_run")

    expect_check(page, "fim_prompts", "rejected_share", "Failed")
    shot("6_failed_check")

    [run] = service.instance.get_runs(limit=1)
    events = service.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert {event.get_dagster_event().asset_key.path[-1] for event in events} == {"raw_completions", "fim_prompts"}
