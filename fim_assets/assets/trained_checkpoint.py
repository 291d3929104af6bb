"""The model, trained."""

from collections.abc import Iterator
from functools import partial

import dagster as dg

from fim_assets.assets.common import asset_options, materialize
from fim_assets.resources.experiment import ExperimentResource
from fim_assets.resources.launcher import Launcher
from fim_assets.resources.progress import LiveProgress
from fim_core.pipeline import training


@dg.asset(
    **asset_options(training.trained_checkpoint),
    kinds={"pytorch", "deepspeed", "huggingface"},
    pool="gpu",
    retry_policy=dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL),
)
def trained_checkpoint(
    context: dg.AssetExecutionContext, experiment: ExperimentResource, launcher: dg.ResourceParam[Launcher]
) -> Iterator[dg.MaterializeResult]:
    """A checkpoint that loads with transformers, trained by DeepSpeed; a retry resumes at the exact step."""
    if (notice := experiment.notice()) is not None:
        context.log.info(notice)
    yield from materialize(
        context,
        experiment,
        training.trained_checkpoint,
        on_event=LiveProgress(context),
        start=partial(launcher.run, context),
    )
