"""Jobs: selections of assets that run together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dagster as dg

from fim_assets.instance import DAILY, EXPERIMENT_TAG, PipelineInstance
from fim_core.pipeline import STAGES

_DAY_SECONDS = 24 * 60 * 60


@dataclass(frozen=True)
class _Job:
    """A selection of assets; a run of them is ended after `days`."""

    assets: tuple[str, ...]
    days: int
    description: str


def _jobs(is_dated: bool) -> dict[str, _Job]:
    """All jobs by name. With exports by day, raw_completions and fim_prompts run for a day each, so they are a job apart."""
    assets = tuple(stage.asset for stage in STAGES if not (is_dated and stage.asset in DAILY))
    jobs = {
        "prepare_data": _Job(
            assets[: assets.index("tokenized_dataset") + 1],
            1,
            "Read the exports, build prompts and tokenize them. Unchanged assets are reused.",
        ),
        "train": _Job(
            ("trained_checkpoint",), 7, "Train on the current tokenized dataset. An interrupted run resumes."
        ),
        "evaluate_only": _Job(
            ("evaluation_report", "champion_model"),
            1,
            "Evaluate the current checkpoint and let the gate decide whether it becomes champion.",
        ),
        "retrain": _Job(
            assets, 7, "Run the whole pipeline, from the exports to the champion. Unchanged assets are reused."
        ),
    }
    return (
        {"prepare_day": _Job(DAILY, 1, "Read the exports of a day and build its prompts.")} | jobs if is_dated else jobs
    )


def build_jobs(instance: PipelineInstance) -> dict[str, Any]:
    """The jobs of an instance, by their name without the instance's prefix."""
    return {
        name: dg.define_asset_job(
            instance.named(name),
            selection=[instance.key(asset) for asset in job.assets],
            description=job.description,
            tags={"dagster/max_runtime": str(job.days * _DAY_SECONDS), EXPERIMENT_TAG: instance.experiment_name},
        )
        for name, job in _jobs(instance.first_day is not None).items()
    }
