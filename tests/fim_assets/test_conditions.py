"""Automation conditions: only changed content of an input triggers a run."""

from __future__ import annotations

import dagster as dg

from fim_assets.automation.conditions import when_inputs_really_change

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
