"""Prompts as token ids, labels and packs."""

import dagster as dg

from fim_assets.assets.common import asset_options, materialize
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import data


@dg.asset(**asset_options(data.tokenized_dataset), kinds={"arrow", "huggingface"})
def tokenized_dataset(context: dg.AssetExecutionContext, experiment: ExperimentResource) -> dg.MaterializeResult:
    """Token ids and labels as a Hugging Face data set, and the packs that training reads them in."""
    return materialize(context, experiment, data.tokenized_dataset)
