"""What the model is worth on held-out rows."""

import dagster as dg

from fim_assets.assets.common import asset_options, materialization
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import evaluation


@dg.asset(**asset_options(evaluation.evaluation_report), kinds={"duckdb", "html"}, pool="gpu")
def evaluation_report(experiment: ExperimentResource) -> dg.MaterializeResult:
    """Metrics with confidence intervals beside baselines and the champion, and every prediction."""
    return materialization(experiment, experiment.materialize(evaluation.evaluation_report))
