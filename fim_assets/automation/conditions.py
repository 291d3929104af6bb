"""When assets are refreshed on their own, and when they count as too old."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from fim_core.config.workflow import RetrainingConfig

# Training costs hours, so it waits for its schedule; what is cheap follows its inputs.
FOLLOWERS = {"fim_prompts", "tokenized_dataset", "evaluation_report", "champion_model"}


def when_inputs_really_change() -> dg.AutomationCondition:
    """True when the data version of an input is another one than at the last refresh.

    Dagster's `eager` would also follow inputs that were materialized again with the same content.
    """
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    wanted = (changed | dg.AutomationCondition.newly_missing()).since_last_handled()
    ready = ~dg.AutomationCondition.any_deps_missing() & ~dg.AutomationCondition.any_deps_in_progress()
    unblocked = dg.AutomationCondition.all_deps_blocking_checks_passed()
    return (wanted & ready & unblocked & ~dg.AutomationCondition.in_progress()).with_label("inputs_really_changed")


def with_automation(spec: dg.AssetSpec, retraining: RetrainingConfig) -> dg.AssetSpec:
    """Add what keeps an asset fresh: followers get the condition, the checkpoint a limit to its age."""
    name = spec.key.path[-1]
    if name in FOLLOWERS:
        return spec.replace_attributes(automation_condition=when_inputs_really_change())
    if name == "trained_checkpoint":
        return spec.replace_attributes(freshness_policy=freshness(retraining))
    return spec


def freshness(retraining: RetrainingConfig) -> dg.FreshnessPolicy:
    """A checkpoint fails when it is older than the experiment allows, and warns a day before."""
    limit = timedelta(days=retraining.max_age_days)
    return dg.FreshnessPolicy.time_window(fail_window=limit, warn_window=max(limit - timedelta(days=1), limit / 2))
