"""What all assets have in common: how they are declared, and how a finished stage is reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg

from fim_assets.checks import check_results, check_specs, not_blocked_by_dagster
from fim_assets.metadata import metadata_of, outcome
from fim_assets.resources.experiment import ExperimentResource, user_errors
from fim_assets.resources.run_worker import bind_to_worker
from fim_core.pipeline import Stage, run_stage, stage_of
from fim_core.pipeline.stage import OnEvent
from fim_core.store import Store
from fim_core.training.ranks import Start


def asset_options(stage: Stage) -> dict[str, Any]:
    """The arguments of `@dg.asset` that follow from the stage."""
    return {
        "deps": list(stage.upstream),
        "check_specs": check_specs(stage.asset),
        "code_version": stage.code_version,
        "group_name": "fim",
    }


def materialize(
    context: dg.AssetExecutionContext,
    experiment: ExperimentResource,
    stage: Stage,
    on_event: OnEvent = lambda event: None,
    start: Start | None = None,
) -> Iterator[dg.MaterializeResult]:
    """Make, or reuse, the asset of a stage, and report it: content version, metadata, checks.

    Raises:
        dagster.Failure: a mistake that the user can correct, in one sentence, or a failed check that the experiment
            has raised to an error.
    """
    bind_to_worker(context)
    options = experiment.load()
    with user_errors():
        result = run_stage(
            stage,
            options,
            Store(options.storage),
            upstream_of=stage_of,
            force=experiment.force,
            on_event=on_event,
            start=start,
        )
    artifact = result.artifact
    context.log.info(f"{artifact.asset}: {outcome(result)}, {artifact.path}")
    for check in result.checks:
        if not check.passed:
            context.log.warning(f"check failed ({check.severity}): {check.sentence}")
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.version),
        metadata=metadata_of(result, options),
        check_results=check_results(artifact.asset, result.checks),
    )
    if raised := not_blocked_by_dagster(artifact.asset, result.checks):
        sentences = " ".join(check.sentence for check in raised)
        raise dg.Failure(
            description=f"Failed by the severity that the experiment sets: {sentences}", allow_retries=False
        )
