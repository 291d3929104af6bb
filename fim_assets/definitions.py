"""Dagster definitions: one instance of the component, without a prefix. Heavy libraries are imported when stages run."""

from __future__ import annotations

import dagster as dg

from fim_assets.component import definitions_of
from fim_assets.instance import PipelineInstance, default_experiment_path


@dg.definitions
def defs() -> dg.Definitions:
    """The pipeline for the experiment in $FIM_EXPERIMENT."""
    return definitions_of(PipelineInstance(default_experiment_path()))
