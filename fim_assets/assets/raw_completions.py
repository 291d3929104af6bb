"""Every exported row, verbatim."""

from collections.abc import Iterator

import dagster as dg

from fim_assets.assets.common import asset_options, materialize
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import data


@dg.asset(**asset_options(data.raw_completions), kinds={"parquet", "duckdb"})
def raw_completions(
    context: dg.AssetExecutionContext, experiment: ExperimentResource
) -> Iterator[dg.MaterializeResult]:
    """Every row of the exports as text, exactly as written, with a row_id that leads back to its file and line."""
    yield from materialize(context, experiment, data.raw_completions)
