"""The six assets of the pipeline, one per stage of `fim_core.pipeline`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Any

import dagster as dg

from fim_assets.checks import check_results, check_specs, not_blocked_by_dagster
from fim_assets.instance import DAILY, EXPERIMENT_TAG, PipelineInstance
from fim_assets.metadata import metadata_of, outcome
from fim_assets.resources import deployment
from fim_assets.resources.experiment import ExperimentResource, user_errors
from fim_assets.resources.progress import LiveProgress
from fim_assets.resources.run_worker import bind_to_worker
from fim_core.config import Experiment
from fim_core.launchers.base import StartRanks
from fim_core.pipeline import STAGES, Stage, StageResult, run, run_stage, stage_of
from fim_core.pipeline.stage import OnEvent
from fim_core.store import Store


@dataclass(frozen=True)
class _Traits:
    """What Dagster shows of an asset and how it runs it.

    Attributes:
        on_gpu: whether it takes a slot of the instance's pool.
        options: further arguments of `@dg.asset`.
    """

    kinds: set[str]
    description: str
    on_gpu: bool = False
    options: dict[str, Any] = field(default_factory=dict)


_TRAITS = {
    "raw_completions": _Traits(
        {"parquet", "duckdb"},
        "All rows of the exports, as verbatim text. The row_id identifies the export and the row in it.",
    ),
    "fim_prompts": _Traits(
        {"parquet", "duckdb"},
        "Prompt, response and split of every usable row, and every rejected row with its reason.",
    ),
    "tokenized_dataset": _Traits(
        {"arrow", "huggingface"},
        "Token ids and labels as a Hugging Face data set with the splits train and eval.",
    ),
    "trained_checkpoint": _Traits(
        {"pytorch", "deepspeed", "huggingface"},
        "Checkpoint in Hugging Face format, trained with DeepSpeed. A retry resumes at the last saved step.",
        on_gpu=True,
        options={"retry_policy": dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL)},
    ),
    "evaluation_report": _Traits(
        {"duckdb", "html"},
        "Metrics on held-out rows with confidence intervals, compared with the base model, constants and the champion.",
        on_gpu=True,
    ),
    "champion_model": _Traits(
        {"huggingface"},
        "The model to serve. A new checkpoint replaces it only if every rule of the gate holds.",
    ),
}


def build_assets(instance: PipelineInstance) -> list[dg.AssetsDefinition]:
    """The assets of an instance, upstream first. They need its resources `experiment` and `launcher`."""
    return [_build_asset(instance, stage) for stage in STAGES]


def _build_asset(instance: PipelineInstance, stage: Stage) -> dg.AssetsDefinition:
    traits, key = _TRAITS[stage.asset], instance.key(stage.asset)
    experiment, launcher = instance.named("experiment"), instance.named("launcher")

    @dg.asset(
        key=key,
        deps=[instance.key(asset) for asset in stage.upstream],
        check_specs=check_specs(key),
        code_version=stage.code_version,
        group_name=instance.group_name,
        description=traits.description,
        kinds=traits.kinds,
        pool=instance.pool if traits.on_gpu else None,
        partitions_def=instance.partitions if stage.asset in DAILY else None,
        required_resource_keys={experiment, launcher} if stage.asset == "trained_checkpoint" else {experiment},
        **traits.options,
    )
    def asset(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        chosen = getattr(context.resources, experiment)
        if stage.asset != "trained_checkpoint":
            yield from materialize(context, instance, chosen, stage, LiveProgress(context))
            return
        if (notice := chosen.read(instance).notice) is not None:
            context.log.info(notice)
        if (limits := deployment.notice(context.instance)) is not None:
            context.log.warning(limits)
        start = partial(getattr(context.resources, launcher).run, context)
        yield from materialize(context, instance, chosen, stage, LiveProgress(context), start)

    return asset


def materialize(
    context: dg.AssetExecutionContext,
    instance: PipelineInstance,
    chosen: ExperimentResource,
    stage: Stage,
    on_event: OnEvent,
    start: StartRanks | None = None,
) -> Iterator[dg.MaterializeResult]:
    """Make or reuse the asset of a stage; report its data version, metadata and check results.

    Raises:
        dagster.Failure: a user's mistake, in one sentence; or a failed check whose severity the experiment raised to error.
    """
    bind_to_worker(context)
    options = chosen.read(instance).experiment
    _tag_run(context, options.name)
    _warn_of_other_experiment(context, options.name)
    if options.data.is_dated and stage.asset == "tokenized_dataset":
        _join_days(context, options, force=chosen.force)
    with user_errors():
        result = run_stage(
            stage,
            options.of_day(date.fromisoformat(context.partition_key)) if context.has_partition_key else options,
            Store(options.storage),
            upstream_of=stage_of,
            force=chosen.force,
            on_event=on_event,
            start=start,
        )
    _log(context, result)
    key, metadata = instance.key(stage.asset), metadata_of(result, options)
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(result.artifact.version),
        metadata=_without_split(metadata) if context.has_partition_key else metadata,
        check_results=check_results(key, result.checks),
    )
    if raised := not_blocked_by_dagster(key, result.checks):
        sentences = " ".join(check.sentence for check in raised)
        raise dg.Failure(
            description=f"Failed a check that the experiment sets to severity error: {sentences}", allow_retries=False
        )


def _join_days(context: dg.AssetExecutionContext, options: Experiment, *, force: bool) -> None:
    """Bring the rows of all days into one table and draw the held-out rows in it; the prompts come from the cache.

    Raises:
        dagster.Failure: a user's mistake, or a failed check that blocks.
    """
    with user_errors():
        for result in run(options, until="fim_prompts", force=force).values():
            _log(context, result)


def _log(context: dg.AssetExecutionContext, result: StageResult) -> None:
    """Log what was made or reused, and the checks that failed."""
    context.log.info(f"{result.artifact.asset}: {outcome(result)}, {result.artifact.path}")
    for check in result.checks:
        if not check.passed:
            context.log.warning(f"check failed ({check.severity}): {check.sentence}")


def _without_split(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata for a day, without the counts of the split, which is decided over all days."""
    return {name: value for name, value in metadata.items() if name not in {"train_rows", "eval_rows", "left_out_rows"}}


def _tag_run(context: dg.AssetExecutionContext, experiment: str) -> None:
    """Add the experiment to the run's tag, which names several if assets of several instances run together."""
    run = context.instance.get_run_by_id(context.run_id)
    tagged = set(filter(None, run.tags.get(EXPERIMENT_TAG, "").split(", "))) if run else set()
    if experiment not in tagged:
        context.instance.add_run_tags(context.run_id, {EXPERIMENT_TAG: ", ".join(sorted({*tagged, experiment}))})


def _warn_of_other_experiment(context: dg.AssetExecutionContext, experiment: str) -> None:
    """Warn if the asset's last materialization was of another experiment, which FIM_EXPERIMENT named then."""
    entry = context.instance.get_latest_materialization_event(context.asset_key)
    before = entry.asset_materialization.metadata.get("experiment") if entry and entry.asset_materialization else None
    if before is not None and before.value != experiment:
        context.log.warning(
            f"The last materialization of this asset was of the experiment {before.value}, this one is of {experiment}: "
            "the plots of the asset show both. For a history of its own, give each experiment an instance of the component "
            "fim_assets.FimPipeline."
        )
