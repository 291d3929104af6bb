"""Rows as prompts and responses."""

import dagster as dg

from fim_assets.assets.common import asset_options, materialization
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import data


@dg.asset(**asset_options(data.fim_prompts), kinds={"parquet", "duckdb"})
def fim_prompts(experiment: ExperimentResource) -> dg.MaterializeResult:
    """Rows parsed and rendered: prompt, response and split; and every rejected row with its reason."""
    return materialization(experiment, experiment.materialize(data.fim_prompts))
