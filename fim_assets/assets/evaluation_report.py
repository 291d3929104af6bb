"""What the model is worth on held-out rows."""

from collections.abc import Iterator

import dagster as dg

from fim_assets.assets.common import asset_options, materialize
from fim_assets.resources.experiment import ExperimentResource
from fim_assets.resources.progress import LiveProgress
from fim_core.pipeline import evaluation


@dg.asset(**asset_options(evaluation.evaluation_report), kinds={"duckdb", "html"}, pool="gpu")
def evaluation_report(
    context: dg.AssetExecutionContext, experiment: ExperimentResource
) -> Iterator[dg.MaterializeResult]:
    """Metrics with confidence intervals, compared with the base model, constants and the champion; every prediction."""
    yield from materialize(context, experiment, evaluation.evaluation_report, on_event=LiveProgress(context))
