"""Champions in a store, without training: an experiment, its reports, and the files of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fim_core.config import Experiment
from fim_core.folders.decision import DecisionFolder
from fim_core.store import Artifact, Store

MODEL_FILES = {"config.json", "model.safetensors", "tokenizer.json", "fim.json", "README.md"}
"""What is published of a champion of `promote`."""


def experiment(folder: Path, *targets: Any, name: str = "tiny") -> Experiment:
    return Experiment.model_validate(
        {
            "name": name,
            "storage": str(folder / "store"),
            "model": {"config": {"model_type": "qwen3"}, "tokenizer": {"vocab_size": 700}},
            "data": {"sources": [{"type": "demo"}]},
            "publish": list(targets),
        }
    )


def promote(store: Store, number: int, name: str = "tiny", code: str = "1") -> Artifact:
    """Make a model the champion; its weights hold `number`."""
    metrics = {"exact_match": {"value": number / 10}, "binds": {"value": None}}
    with store.publish("evaluation_report", experiment=name, inputs={"n": str(number)}, config={}, code=code) as report:
        report.counts["metrics"] = metrics
    found = store.versions("evaluation_report")[-1]
    before = store.find_current("champion_model", name)
    inputs = {
        "trained_checkpoint": f"c{number}",
        "evaluation_report": found.version,
        "champion": before.version if before else "none",
    }
    with store.publish("champion_model", experiment=name, inputs=inputs, config={}, code=code, replace=True) as draft:
        draft.counts |= {"promote": True, "candidate": f"c{number}"}
        layout = DecisionFolder(draft.path)
        layout.decision.write_text("{}")
        write_model(layout.weights(name), number)
    made = store.versions("champion_model")[-1]
    store.use(made, name)
    return made


def write_model(folder: Path, number: int) -> None:
    """The files of a checkpoint, with those of its training run."""
    (folder / "packs").mkdir(parents=True)
    (folder / "trackers").mkdir()
    save_file({"weight": np.full(4, number, np.float32)}, folder / "model.safetensors")
    for file in MODEL_FILES - {"model.safetensors"}:
        (folder / file).write_text(json.dumps({"file": file, "number": number}))
    for file in ("manifest.json", "metrics.jsonl", "packs/epoch-0.parquet", "trackers/events"):
        (folder / file).write_text("{}")
