"""Jobs: selections of assets that run together."""

from __future__ import annotations

import dagster as dg

from fim_core.pipeline import STAGES

_DAY_SECONDS = 24 * 60 * 60

prepare_data = dg.define_asset_job(
    "prepare_data",
    selection=["raw_completions", "fim_prompts", "tokenized_dataset"],
    description="Read the exports, build prompts and tokenize them. Unchanged assets are reused.",
    tags={"dagster/max_runtime": str(_DAY_SECONDS)},
)
train = dg.define_asset_job(
    "train",
    selection=["trained_checkpoint"],
    description="Train on the current tokenized dataset. An interrupted run resumes.",
    tags={"dagster/max_runtime": str(7 * _DAY_SECONDS)},
)
evaluate_only = dg.define_asset_job(
    "evaluate_only",
    selection=["evaluation_report", "champion_model"],
    description="Evaluate the current checkpoint and let the gate decide whether it becomes champion.",
    tags={"dagster/max_runtime": str(_DAY_SECONDS)},
)
retrain = dg.define_asset_job(
    "retrain",
    selection=[stage.asset for stage in STAGES],
    description="Run the whole pipeline, from the exports to the champion. Unchanged assets are reused.",
    tags={"dagster/max_runtime": str(7 * _DAY_SECONDS)},
)

JOBS = [prepare_data, train, evaluate_only, retrain]
