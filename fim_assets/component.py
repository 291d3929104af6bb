"""The component `fim_assets.FimPipeline`: the pipeline of one experiment, for any Dagster project."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from typing import Annotated, Any

import dagster as dg
from pydantic import TypeAdapter, ValidationError

from fim_assets.assets import build_assets
from fim_assets.automation.conditions import with_automation
from fim_assets.automation.exports import exports_sensor
from fim_assets.automation.jobs import build_jobs
from fim_assets.automation.notify import failure_sensor
from fim_assets.automation.retraining import retraining_schedule
from fim_assets.instance import PipelineInstance
from fim_assets.resources.experiment import ExperimentResource, workflow_settings
from fim_assets.resources.launcher import Launcher
from fim_assets.scaffold import FimPipelineScaffolder
from fim_core.config import DataConfig
from fim_core.config.launchers import LauncherConfig
from fim_core.errors import FimError
from fim_core.records.dated import dates_of


def _path(context: dg.ResolutionContext, value: str) -> str:
    return str(context.resolve_source_relative_path(context.resolve_value(value, as_type=str)))


def _launcher(context: dg.ResolutionContext, value: Any) -> dict[str, Any] | None:
    """The section, if it is valid.

    Raises:
        ValueError: it is not.
    """
    section = context.resolve_value(value)
    if section is not None:
        try:
            TypeAdapter(LauncherConfig).validate_python(section)
        except ValidationError as error:
            problems = [(["launcher", *map(str, each["loc"])], each["msg"]) for each in error.errors()]
            raise ValueError("; ".join(f"{'.'.join(place)}: {message}" for place, message in problems)) from None
    return section


def _key_prefix(context: dg.ResolutionContext, value: Any) -> str | None:
    prefix = context.resolve_value(value)
    if prefix is not None and not re.fullmatch(r"\w+(/\w+)*", prefix, re.ASCII):
        raise ValueError(f"key_prefix {prefix!r}: use letters, digits and `_`, with `/` between parts")
    return prefix


@dg.scaffold_with(FimPipelineScaffolder)
class FimPipeline(dg.Component, dg.Model, dg.Resolvable):
    """Trains a fill-in-the-middle SQL completion model: six assets with checks, four jobs, a schedule and two sensors.

    Names of jobs, schedule, sensors and resources begin with the key prefix, so that one code location can hold several
    instances. Relative paths in the experiment file are relative to the folder that Dagster runs in.
    """

    experiment: Annotated[
        str,
        dg.Resolver(
            _path,
            model_field_type=str,
            description="Experiment file (YAML); a relative path is relative to the folder of this file.",
            examples=["orders.yaml"],
        ),
    ]
    key_prefix: Annotated[
        str | None,
        dg.Resolver(
            _key_prefix,
            model_field_type=str | None,
            description="First parts of the asset keys, separated by `/`. Default: none.",
            examples=["orders"],
        ),
    ] = None
    group_name: Annotated[
        str | None,
        dg.Resolver.default(description="Dagster group of the assets. Default: the key prefix, or `fim` without one."),
    ] = None
    pool: Annotated[
        str,
        dg.Resolver.default(
            description="Concurrency pool of training and evaluation; instances with the same pool share its slots."
        ),
    ] = "gpu"
    launcher: Annotated[
        dict[str, Any] | None,
        dg.Resolver(
            _launcher,
            model_field_type=dict[str, Any] | None,
            description="Where training runs; replaces the section `launcher` of the experiment file.",
            examples=[{"type": "ray", "address": "http://head:8265", "num_gpus": 8}],
        ),
    ] = None

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """Description and kinds of definitions for Dagster's list of components."""
        return dg.ComponentTypeSpec(
            tags=["sql", "llm", "fine-tuning"],
            produces=["asset", "asset_check", "job", "schedule", "sensor", "resource"],
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """All definitions of this instance."""
        prefix = tuple(self.key_prefix.split("/")) if self.key_prefix else ()
        group = self.group_name or "_".join(prefix) or "fim"
        return definitions_of(PipelineInstance(self.experiment, prefix, group, self.pool, self.launcher))


def definitions_of(instance: PipelineInstance) -> dg.Definitions:
    """All definitions of an instance of the pipeline."""
    settings = workflow_settings(instance)
    days = settings.data if settings.data is not None and settings.data.is_dated else None
    if days is not None:
        instance = replace(instance, first_day=_first_day(days))
    jobs = build_jobs(instance)
    return dg.Definitions(
        assets=dg.map_asset_specs(
            partial(with_automation, instance=instance, retraining=settings.retraining), build_assets(instance)
        ),
        jobs=list(jobs.values()),
        schedules=[retraining_schedule(instance, jobs["retrain"], settings.retraining)],
        sensors=[
            exports_sensor(instance, jobs["prepare_day" if days else "prepare_data"], settings.exports, days),
            failure_sensor(instance, {job.name for job in jobs.values()}, settings.notify),
        ],
        resources={
            instance.named("experiment"): ExperimentResource(path=instance.experiment, force=False),
            instance.named("launcher"): Launcher(),
        },
    )


def _first_day(data: DataConfig) -> date:
    """The day of the oldest export; today if there is none, or the bucket cannot be listed, which must not break the code
    location."""
    try:
        dates = dates_of(data)
    except FimError as error:
        dg.get_dagster_logger().warning(
            f"The exports cannot be listed, so that the only daily partition is today. Reload the definitions. {error}"
        )
        dates = []
    return dates[0] if dates else datetime.now(UTC).date()
