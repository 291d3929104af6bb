"""What all assets have in common: how they are declared, and how a finished stage is reported."""

from __future__ import annotations

from typing import Any

import dagster as dg

from fim_assets.checks import check_results, check_specs
from fim_assets.metadata import metadata_of
from fim_assets.resources.experiment import ExperimentResource
from fim_core.pipeline import Stage, StageResult


def asset_options(stage: Stage) -> dict[str, Any]:
    """The arguments of `@dg.asset` that follow from the stage."""
    return {
        "deps": list(stage.upstream),
        "check_specs": check_specs(stage.asset),
        "code_version": stage.code_version,
        "group_name": "fim",
    }


def materialization(experiment: ExperimentResource, result: StageResult) -> dg.MaterializeResult:
    """A finished stage as Dagster records it: content version, metadata, checks."""
    artifact = result.artifact
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.version),
        metadata=metadata_of(result, experiment.load()),
        check_results=check_results(artifact.asset, result.checks),
    )
