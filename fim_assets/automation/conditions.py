"""Automation conditions and freshness policies of the assets."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from fim_core.config.workflow import RetrainingConfig

# Training takes hours, so it runs on a schedule only. The other assets follow their inputs.
FOLLOWERS = {"fim_prompts", "tokenized_dataset", "evaluation_report", "champion_model"}


def when_inputs_really_change() -> dg.AutomationCondition:
    """True when the data version of an input has changed since the last refresh.

    Dagster's `eager` would also fire for inputs that were materialized again with the same content.
    """
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    wanted = (changed | dg.AutomationCondition.newly_missing()).since_last_handled()
    ready = ~dg.AutomationCondition.any_deps_missing() & ~dg.AutomationCondition.any_deps_in_progress()
    unblocked = dg.AutomationCondition.all_deps_blocking_checks_passed()
    return (wanted & ready & unblocked & ~dg.AutomationCondition.in_progress()).with_label("inputs_really_changed")


def with_automation(spec: dg.AssetSpec, retraining: RetrainingConfig) -> dg.AssetSpec:
    """Add the automation condition to assets that follow their inputs, and the freshness policy to the checkpoint."""
    name = spec.key.path[-1]
    if name in FOLLOWERS:
        return spec.replace_attributes(automation_condition=when_inputs_really_change())
    if name == "trained_checkpoint":
        return spec.replace_attributes(freshness_policy=freshness(retraining))
    return spec


def freshness(retraining: RetrainingConfig) -> dg.FreshnessPolicy:
    """Fail from the maximum age of a checkpoint on; warn a day earlier, or from half the age if that is later."""
    limit = timedelta(days=retraining.max_age_days)
    return dg.FreshnessPolicy.time_window(fail_window=limit, warn_window=max(limit - timedelta(days=1), limit / 2))
