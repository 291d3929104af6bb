"""Rows as prompts and responses."""

from collections.abc import Iterator

import dagster as dg

from fim_assets.assets.common import asset_options, materialize
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import data


@dg.asset(**asset_options(data.fim_prompts), kinds={"parquet", "duckdb"})
def fim_prompts(context: dg.AssetExecutionContext, experiment: ExperimentResource) -> Iterator[dg.MaterializeResult]:
    """Rows parsed and rendered: prompt, response and split; and every rejected row with its reason."""
    yield from materialize(context, experiment, data.fim_prompts)
