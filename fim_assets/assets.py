"""The six assets of the pipeline, one per stage of `fim_core.pipeline`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import dagster as dg

from fim_assets.checks import check_results, check_specs, not_blocked_by_dagster
from fim_assets.metadata import metadata_of, outcome
from fim_assets.resources import deployment
from fim_assets.resources.experiment import ExperimentResource, user_errors
from fim_assets.resources.launcher import Launcher
from fim_assets.resources.progress import LiveProgress
from fim_assets.resources.run_worker import bind_to_worker
from fim_core.launchers.base import StartRanks
from fim_core.pipeline import Stage, run_stage, stage_of
from fim_core.pipeline.stage import OnEvent
from fim_core.store import Store


def asset_options(stage: Stage) -> dict[str, Any]:
    """Arguments of `@dg.asset` that are derived from the stage."""
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
    start: StartRanks | None = None,
) -> Iterator[dg.MaterializeResult]:
    """Make or reuse the asset of a stage; report its data version, metadata and check results.

    Raises:
        dagster.Failure: a user's mistake, in one sentence; or a failed check whose severity the experiment raised to error.
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
            description=f"Failed a check that the experiment sets to severity error: {sentences}", allow_retries=False
        )


@dg.asset(**asset_options(stage_of("raw_completions")), kinds={"parquet", "duckdb"})
def raw_completions(
    context: dg.AssetExecutionContext, experiment: ExperimentResource
) -> Iterator[dg.MaterializeResult]:
    """All rows of the exports, as verbatim text. The row_id identifies the export and the row in it."""
    yield from materialize(context, experiment, stage_of("raw_completions"))


@dg.asset(**asset_options(stage_of("fim_prompts")), kinds={"parquet", "duckdb"})
def fim_prompts(context: dg.AssetExecutionContext, experiment: ExperimentResource) -> Iterator[dg.MaterializeResult]:
    """Prompt, response and split of every usable row, and every rejected row with its reason."""
    yield from materialize(context, experiment, stage_of("fim_prompts"))


@dg.asset(**asset_options(stage_of("tokenized_dataset")), kinds={"arrow", "huggingface"})
def tokenized_dataset(
    context: dg.AssetExecutionContext, experiment: ExperimentResource
) -> Iterator[dg.MaterializeResult]:
    """Token ids and labels as a Hugging Face data set with the splits train and eval."""
    yield from materialize(context, experiment, stage_of("tokenized_dataset"))


@dg.asset(
    **asset_options(stage_of("trained_checkpoint")),
    kinds={"pytorch", "deepspeed", "huggingface"},
    pool="gpu",
    retry_policy=dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL),
)
def trained_checkpoint(
    context: dg.AssetExecutionContext, experiment: ExperimentResource, launcher: dg.ResourceParam[Launcher]
) -> Iterator[dg.MaterializeResult]:
    """Checkpoint in Hugging Face format, trained with DeepSpeed. A retry resumes at the last saved step."""
    if (notice := experiment.notice()) is not None:
        context.log.info(notice)
    if (limits := deployment.notice(context.instance)) is not None:
        context.log.warning(limits)
    yield from materialize(
        context,
        experiment,
        stage_of("trained_checkpoint"),
        on_event=LiveProgress(context),
        start=partial(launcher.run, context),
    )


@dg.asset(**asset_options(stage_of("evaluation_report")), kinds={"duckdb", "html"}, pool="gpu")
def evaluation_report(
    context: dg.AssetExecutionContext, experiment: ExperimentResource
) -> Iterator[dg.MaterializeResult]:
    """Metrics on held-out rows with confidence intervals, compared with the base model, constants and the champion."""
    yield from materialize(context, experiment, stage_of("evaluation_report"), on_event=LiveProgress(context))


@dg.asset(**asset_options(stage_of("champion_model")), kinds={"huggingface"})
def champion_model(context: dg.AssetExecutionContext, experiment: ExperimentResource) -> Iterator[dg.MaterializeResult]:
    """The model to serve. A new checkpoint replaces it only if every rule of the gate holds."""
    yield from materialize(context, experiment, stage_of("champion_model"))


ASSETS = [raw_completions, fim_prompts, tokenized_dataset, trained_checkpoint, evaluation_report, champion_model]
