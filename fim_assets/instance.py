"""One instance of the pipeline in a code location: its experiment, and the names of its definitions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg

from fim_core.config import read_experiment_file
from fim_core.config.experiment_file import ExperimentFile, name_in

DEFAULT_EXPERIMENT = "configs/demo.yaml"

EXPERIMENT_TAG = "fim/experiment"
"""Tag of runs with the name of their experiment."""

DAILY = ("raw_completions", "fim_prompts")
"""Assets with a partition for each day, if the experiment has exports by day. The others read all days, or the window."""


def default_experiment_path() -> str:
    """The experiment of this project's own definitions: $FIM_EXPERIMENT, or the demo."""
    return os.environ.get("FIM_EXPERIMENT") or DEFAULT_EXPERIMENT


@dataclass(frozen=True)
class PipelineInstance:
    """The pipeline of one experiment. A code location may hold several, which differ in `key_prefix`.

    Attributes:
        experiment: path of the experiment file.
        key_prefix: first parts of all asset keys; the names of jobs, schedule, sensors and resources begin with them too.
        group_name: Dagster group of the assets.
        pool: concurrency pool of training and evaluation. Instances that name the same pool share its slots.
        launcher: replaces the section `launcher` of the file; None keeps the file's.
        first_day: first day of the daily partitions; None if the experiment has no exports by day.
    """

    experiment: str
    key_prefix: tuple[str, ...] = ()
    group_name: str = "fim"
    pool: str = "gpu"
    launcher: Mapping[str, Any] | None = None
    first_day: date | None = None

    def key(self, asset: str) -> dg.AssetKey:
        """Key of an asset."""
        return dg.AssetKey([*self.key_prefix, asset])

    def named(self, name: str) -> str:
        """Name of a job, schedule, sensor or resource: `orders_retrain` for the prefix `orders`."""
        return "_".join([*self.key_prefix, name])

    @property
    def partitions(self) -> dg.DailyPartitionsDefinition | None:
        """The partitions of raw_completions and fim_prompts, up to today; None if they have none."""
        if self.first_day is None:
            return None
        # A day's export may arrive on that day: the offset adds today.
        return dg.DailyPartitionsDefinition(start_date=self.first_day.isoformat(), end_offset=1)

    @property
    def experiment_name(self) -> str:
        """Name of the experiment, also if other options of its file are invalid."""
        return name_in(Path(self.experiment))

    def read(self, path: str | None = None) -> ExperimentFile:
        """Read the experiment file, or another one, as a run of this instance uses it.

        Raises:
            FimError: it is missing or has invalid options.
        """
        replaced = {} if self.launcher is None else {"launcher": dict(self.launcher)}
        return read_experiment_file(path or self.experiment, replaced)
