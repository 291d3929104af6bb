"""A tiny experiment, and helpers to run it in Dagster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from fim_assets.assets import build_assets
from fim_assets.instance import PipelineInstance
from fim_assets.resources.experiment import ExperimentResource
from fim_assets.resources.launcher import Launcher

TINY: dict[str, Any] = {
    "model": {
        "config": {
            "model_type": "qwen3",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": True,
        },
        "tokenizer": {"vocab_size": 700},
    },
    "data": {"sources": [{"type": "demo", "rows": 300, "seed": 3}], "max_length": 2048},
    "max_steps": 3,
    "optimizer": {"lr": 1e-2},
    "evaluation": {"max_rows": 6, "max_new_tokens": 4, "bootstrap_samples": 100},
    "metadata": {"show_samples": True},
}


def write_experiment(folder: Path, **changes: Any) -> Path:
    """The tiny experiment with its store in `folder`; `changes` replace whole sections, and `name=None` leaves it out."""
    path = folder / "tiny.yaml"
    content = {"name": "tiny", **TINY, "storage": str(folder / "store"), **changes}
    if content["name"] is None:
        del content["name"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def materialize(path: Path, instance: dg.DagsterInstance, select: list[str] | None = None) -> dg.ExecuteInProcessResult:
    """Run assets of an experiment as Dagster does."""
    return dg.materialize(
        build_assets(PipelineInstance(str(path))),
        instance=instance,
        resources={"experiment": ExperimentResource(path=str(path), force=False), "launcher": Launcher()},
        selection=select,
        raise_on_error=False,
    )


def outcomes(result: dg.ExecuteInProcessResult) -> Mapping[str, str]:
    """Outcome of each asset: `made` or `reused`."""
    return {
        event.asset_key.path[-1]: event.materialization.metadata["outcome"].value.split()[0]
        for event in result.get_asset_materialization_events()
        if event.asset_key
    }
