"""Jobs: selections of assets that run together."""

from __future__ import annotations

from typing import Any

import dagster as dg

from fim_assets.instance import EXPERIMENT_TAG, PipelineInstance
from fim_core.pipeline import STAGES

_DAY_SECONDS = 24 * 60 * 60

# Name: assets, days after which a run is ended, description.
_JOBS = {
    "prepare_data": (
        ["raw_completions", "fim_prompts", "tokenized_dataset"],
        1,
        "Read the exports, build prompts and tokenize them. Unchanged assets are reused.",
    ),
    "train": (["trained_checkpoint"], 7, "Train on the current tokenized dataset. An interrupted run resumes."),
    "evaluate_only": (
        ["evaluation_report", "champion_model"],
        1,
        "Evaluate the current checkpoint and let the gate decide whether it becomes champion.",
    ),
    "retrain": (
        [stage.asset for stage in STAGES],
        7,
        "Run the whole pipeline, from the exports to the champion. Unchanged assets are reused.",
    ),
}


def build_jobs(instance: PipelineInstance) -> dict[str, Any]:
    """The jobs of an instance, by their name without the instance's prefix."""
    return {
        name: dg.define_asset_job(
            instance.named(name),
            selection=[instance.key(asset) for asset in assets],
            description=description,
            tags={"dagster/max_runtime": str(days * _DAY_SECONDS), EXPERIMENT_TAG: instance.experiment_name},
        )
        for name, (assets, days, description) in _JOBS.items()
    }
