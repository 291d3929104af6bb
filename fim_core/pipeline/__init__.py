"""The pipeline: its stages in order, and running them without Dagster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.pipeline.materialize import StageResult, run_stage
from fim_core.pipeline.stage import Stage
from fim_core.pipeline.stages.champion_model import champion_model
from fim_core.pipeline.stages.evaluation_report import evaluation_report
from fim_core.pipeline.stages.fim_prompts import fim_prompts
from fim_core.pipeline.stages.raw_completions import raw_completions
from fim_core.pipeline.stages.tokenized_dataset import tokenized_dataset
from fim_core.pipeline.stages.trained_checkpoint import trained_checkpoint
from fim_core.store import Store

STAGES = (raw_completions, fim_prompts, tokenized_dataset, trained_checkpoint, evaluation_report, champion_model)


def stage_of(asset: str) -> Stage:
    """Return the stage that makes an asset."""
    return next(stage for stage in STAGES if stage.asset == asset)


def run(
    experiment: Experiment,
    *,
    until: str = "champion_model",
    force: bool = False,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> dict[str, StageResult]:
    """Make every asset up to `until`, reusing existing versions.

    Args:
        experiment: the options.
        until: the last asset to make.
        force: make all assets again.
        on_event: called with progress events: those of training and evaluation, and per stage `{"event": "stage",
            "asset": …, "version": …, "reused": …, "seconds": …, "failed_checks": […]}`.

    Returns:
        The result of each stage by asset name.

    Raises:
        FimError: a stage failed, or one of its blocking checks did.
    """
    store = Store(experiment.storage)
    results: dict[str, StageResult] = {}
    for stage in STAGES:
        result = run_stage(stage, experiment, store, upstream_of=stage_of, force=force, on_event=on_event)
        results[stage.asset] = result
        on_event(
            {
                "event": "stage",
                "asset": stage.asset,
                "version": result.artifact.version,
                "reused": result.reused,
                "seconds": result.seconds,
                "failed_checks": [check for check in result.checks if not check.passed],
            }
        )
        if stage.asset == until:
            break
        if result.blocked_by:
            failed = "; ".join(check.sentence for check in result.blocked_by)
            raise FimError(f"{stage.asset} {result.artifact.version} did not pass its checks: {failed}.")
    return results


__all__ = ["STAGES", "Stage", "StageResult", "run", "run_stage", "stage_of"]
