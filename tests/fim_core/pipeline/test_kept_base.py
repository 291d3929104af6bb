"""Cached predictions of the base model: what their identity depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fim_core.batch_cache import BatchCache
from fim_core.config import Experiment
from fim_core.pipeline.stage import Build
from fim_core.pipeline.stages.evaluation_report import _base
from fim_core.store import Artifact, Store


def identity(folder: Path, weights: str = "abc", seed: int = 42, **model: Any) -> str:
    """Identity of the cached predictions of an experiment's base."""
    content = {"model": {"name_or_path": "base", **model}, "data": {"sources": [{"type": "demo"}]}, "seed": seed}
    checkpoint = Artifact("trained_checkpoint", "v", folder, {"inputs": {"pretrained": weights}})
    build = Build(
        Experiment.model_validate(content), Store(folder), {"trained_checkpoint": checkpoint}, folder, lambda: folder,
        lambda event: None, BatchCache(folder, ""), None,
    )  # fmt: skip
    kept = _base(build).cache
    assert kept is not None
    return kept.identity


def test_predictions_of_the_base_depend_on_what_determines_them(tmp_path: Path) -> None:
    same = identity(tmp_path)
    assert identity(tmp_path, peft_config={"r": 4}) == same, "the adapters are not part of it"
    assert identity(tmp_path, weights="abd") != same
    assert identity(tmp_path, hf_config_kwargs={"rms_norm_eps": 1e-3}) != same
    assert identity(tmp_path, seed=43) != same, "it decides the embeddings of added tokens"
    scratch = {"name_or_path": None, "config": {"model_type": "qwen3"}, "tokenizer": "x"}
    assert identity(tmp_path, **scratch) == identity(tmp_path, **scratch)
    assert identity(tmp_path, **scratch) != identity(tmp_path, seed=43, **scratch)
    assert identity(tmp_path, **scratch) != identity(tmp_path, **scratch | {"dtype": "bf16"})
