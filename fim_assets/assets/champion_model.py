"""The model that serves, replaced only by a better one."""

from collections.abc import Iterator

import dagster as dg

from fim_assets.assets.common import asset_options, materialize
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import evaluation


@dg.asset(**asset_options(evaluation.champion_model), kinds={"huggingface"})
def champion_model(context: dg.AssetExecutionContext, experiment: ExperimentResource) -> Iterator[dg.MaterializeResult]:
    """The candidate replaces the champion only if every rule of the gate holds; otherwise the champion stays."""
    yield from materialize(context, experiment, evaluation.champion_model)
