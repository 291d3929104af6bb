"""Automation conditions: only changed content of an input triggers a run."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import dagster as dg
import pytest

from fim_assets.automation.conditions import when_inputs_really_change, with_automation
from fim_assets.instance import PipelineInstance
from fim_core.config.workflow import RetrainingConfig

CONTENT = {"value": "one"}


@dg.asset
def source() -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion(CONTENT["value"]))


@dg.asset(deps=[source], automation_condition=when_inputs_really_change())
def follower() -> None: ...


def test_only_changed_content_is_followed() -> None:
    defs = dg.Definitions(assets=[source, follower])
    with dg.instance_for_test() as instance:
        dg.materialize([source, follower], instance=instance)
        result = dg.evaluate_automation_conditions(defs, instance)
        requested = []
        for content in ("one", "two", "two"):
            CONTENT["value"] = content
            dg.materialize([source], instance=instance)
            result = dg.evaluate_automation_conditions(defs, instance, cursor=result.cursor)
            requested.append(result.total_requested)
        assert requested == [0, 1, 0]


DAYS = PipelineInstance("tiny.yaml", first_day=date(2026, 3, 1))


def versioned(name: str, *deps: str, daily: bool = False) -> dg.AssetsDefinition:
    """An asset that materializes CONTENT under the automation of the pipeline's asset of this name."""

    @dg.asset(name=name, deps=list(deps), partitions_def=DAYS.partitions if daily else None)
    def asset() -> dg.MaterializeResult:
        return dg.MaterializeResult(data_version=dg.DataVersion(CONTENT["value"]))

    return asset.map_asset_specs(lambda spec: with_automation(spec, DAYS, RetrainingConfig()))


@pytest.fixture
def daily() -> Callable[..., set[str]]:
    """Materialize an asset, of a day or not, with a content; returns what is requested then."""
    assets = [
        versioned("raw_completions", daily=True),
        versioned("fim_prompts", "raw_completions", daily=True),
        versioned("tokenized_dataset", "fim_prompts"),
        versioned("evaluation_report", "raw_completions", "fim_prompts", "tokenized_dataset"),
    ]
    defs, instance, cursor = dg.Definitions(assets=assets), dg.DagsterInstance.ephemeral(), None

    def made(asset: str, content: str, day: str | None = None) -> set[str]:
        nonlocal cursor
        CONTENT["value"] = content
        dg.materialize(assets, instance=instance, selection=[asset], partition_key=day)
        result = dg.evaluate_automation_conditions(defs, instance, cursor=cursor)
        cursor = result.cursor
        return {name for name in names if result.get_num_requested(dg.AssetKey(name))}

    names = ["raw_completions", "fim_prompts", "tokenized_dataset", "evaluation_report"]
    for asset, day in zip(names, ("2026-03-01", "2026-03-01", None, None), strict=True):
        made(asset, "one", day)
    return made


def test_a_new_day_goes_through_the_prompts_to_the_tokens(daily: Callable[..., set[str]]) -> None:
    """Days without an export stay missing and hold up nothing."""
    assert daily("raw_completions", "two", "2026-03-04") == {"fim_prompts"}
    assert daily("fim_prompts", "two", "2026-03-04") == {"tokenized_dataset"}
    assert daily("tokenized_dataset", "two") == {"evaluation_report"}
    assert daily("evaluation_report", "two") == set()
    assert daily("raw_completions", "two", "2026-03-04") == set()
