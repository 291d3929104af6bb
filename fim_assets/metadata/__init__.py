"""Metadata of materialized assets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from fim_assets.metadata import (
    champion_model,
    evaluation_report,
    fim_prompts,
    raw_completions,
    tokenized_dataset,
    trained_checkpoint,
)
from fim_assets.metadata.provenance import exports, made_from
from fim_core.config import Experiment
from fim_core.pipeline import StageResult
from fim_core.store import Artifact, Store

Metadata = dict[str, Any]


def metadata_of(result: StageResult, experiment: Experiment) -> Metadata:
    """Metadata of a finished stage for Dagster's UI.

    The UI lists it in this order, and plots every number over time. So what matters most comes first, and only what is
    worth a plot is a number; other figures are text or in tables. Customer text is included only with the experiment's
    `metadata.show_samples`.
    """
    artifact, manifest = result.artifact, result.artifact.manifest
    store = Store(experiment.storage)
    made: Metadata = {"outcome": outcome(result), "experiment": experiment.name}
    origin: Metadata = {
        "version": artifact.version,
        "path": dg.MetadataValue.path(str(artifact.path)),
        "size": f"{manifest['bytes'] / 1e6:,.1f} MB",
        "exports": exports(artifact, store),
        "made_from": made_from(artifact, store),
        "commit": manifest["commit"] or "not in a git checkout",
        "config": dg.MetadataValue.json(manifest["config"]),
    }
    return made | _DESCRIBE[artifact.asset](artifact, experiment, store) | origin


def outcome(result: StageResult) -> str:
    """Whether the version was made or reused, in words."""
    version = result.artifact.version
    return f"reused version {version}" if result.reused else f"made version {version} in {result.seconds:.1f} s"


_DESCRIBE: Mapping[str, Callable[[Artifact, Experiment, Store], Metadata]] = {
    "raw_completions": raw_completions.describe,
    "fim_prompts": fim_prompts.describe,
    "tokenized_dataset": tokenized_dataset.describe,
    "trained_checkpoint": trained_checkpoint.describe,
    "evaluation_report": evaluation_report.describe,
    "champion_model": champion_model.describe,
}
