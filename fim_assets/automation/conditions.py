"""Automation conditions and freshness policies of the assets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from fim_assets.instance import DAILY, PipelineInstance
from fim_core.config.workflow import RetrainingConfig

# Training takes hours, so it runs on a schedule only. The other assets follow their inputs.
FOLLOWERS = {"fim_prompts", "tokenized_dataset", "evaluation_report", "champion_model"}


def when_inputs_really_change(
    not_followed: Sequence[dg.AssetKey] = (), may_be_missing: Sequence[dg.AssetKey] = ()
) -> dg.AutomationCondition:
    """True when the data version of an input has changed since the last refresh.

    Dagster's `eager` would also fire for inputs that were materialized again with the same content.

    Args:
        not_followed: inputs whose changes do not count.
        may_be_missing: inputs with partitions of which some may not have been materialized.
    """
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    missing = dg.AutomationCondition.any_deps_missing()
    if not_followed:
        changed = changed.ignore(dg.AssetSelection.assets(*not_followed))
    if may_be_missing:
        missing = missing.ignore(dg.AssetSelection.assets(*may_be_missing))
    wanted = (changed | dg.AutomationCondition.newly_missing()).since_last_handled()
    ready = ~missing & ~dg.AutomationCondition.any_deps_in_progress()
    unblocked = dg.AutomationCondition.all_deps_blocking_checks_passed()
    return (wanted & ready & unblocked & ~dg.AutomationCondition.in_progress()).with_label("inputs_really_changed")


def with_automation(spec: dg.AssetSpec, instance: PipelineInstance, retraining: RetrainingConfig) -> dg.AssetSpec:
    """Add the automation condition to assets that follow their inputs, and the freshness policy to the checkpoint."""
    name = spec.key.path[-1]
    if name in FOLLOWERS:
        daily = [instance.key(asset) for asset in DAILY] if instance.first_day and name not in DAILY else []
        # A new day reaches the other assets through tokenized_dataset, which reads the prompts of all days.
        not_followed = [] if name == "tokenized_dataset" else daily
        return spec.replace_attributes(automation_condition=when_inputs_really_change(not_followed, daily))
    if name == "trained_checkpoint":
        return spec.replace_attributes(freshness_policy=freshness(retraining))
    return spec


def freshness(retraining: RetrainingConfig) -> dg.FreshnessPolicy:
    """Fail from the maximum age of a checkpoint on; warn a day earlier, or from half the age if that is later."""
    limit = timedelta(days=retraining.max_age_days)
    return dg.FreshnessPolicy.time_window(fail_window=limit, warn_window=max(limit - timedelta(days=1), limit / 2))
