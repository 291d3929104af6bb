"""Prompts as token ids, labels and packs."""

import dagster as dg

from fim_assets.assets.common import asset_options, materialization
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import data


@dg.asset(**asset_options(data.tokenized_dataset), kinds={"arrow", "huggingface"})
def tokenized_dataset(experiment: ExperimentResource) -> dg.MaterializeResult:
    """Token ids and labels as a Hugging Face data set, and the packs that training reads them in."""
    return materialization(experiment, experiment.materialize(data.tokenized_dataset))
