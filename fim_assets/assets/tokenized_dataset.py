"""Prompts as token ids, labels and packs."""

from collections.abc import Iterator

import dagster as dg

from fim_assets.assets.common import asset_options, materialize
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import data


@dg.asset(**asset_options(data.tokenized_dataset), kinds={"arrow", "huggingface"})
def tokenized_dataset(
    context: dg.AssetExecutionContext, experiment: ExperimentResource
) -> Iterator[dg.MaterializeResult]:
    """Token ids and labels as a Hugging Face data set, and the packs that training reads them in."""
    yield from materialize(context, experiment, data.tokenized_dataset)
