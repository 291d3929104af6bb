"""Dagster definitions: one instance of the component, without a prefix. Heavy libraries are imported when stages run."""

from __future__ import annotations

import os

import dagster as dg

from fim_assets.component import definitions_of
from fim_assets.instance import PipelineInstance

DEFAULT_EXPERIMENT = "configs/demo.yaml"


def default_experiment_path() -> str:
    """$FIM_EXPERIMENT, or the demo."""
    return os.environ.get("FIM_EXPERIMENT") or DEFAULT_EXPERIMENT


@dg.definitions
def defs() -> dg.Definitions:
    """The pipeline for the experiment in $FIM_EXPERIMENT."""
    return definitions_of(PipelineInstance(default_experiment_path()))
