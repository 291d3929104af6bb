"""The stage that trains: tokens → checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fim_core.config import Experiment, portable
from fim_core.files import read_json
from fim_core.pipeline.data import folder_digest
from fim_core.pipeline.stage import Build, Stage
from fim_core.store import Artifact, Store
from fim_core.training.job import Work

_OPTIONS = (
    "type",
    "seed",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "epochs",
    "max_steps",
    "eval_interval",
    "optimizer",
    "scheduler",
    "loss",
    "activation_checkpointing",
    "activation_checkpoint_cpu_offload",
    "deepspeed",
)


def _options(experiment: Experiment) -> dict[str, Any]:
    return experiment.model_dump(mode="json", include=set(_OPTIONS)) | {
        "model": portable(experiment.model.model_dump(mode="json")),
        "data": experiment.data.model_dump(mode="json", include={"sample_weighted_loss"}),
        "num_processes": experiment.launcher.num_processes,
    }


def _pretrained(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    place = experiment.model.name_or_path
    return {"pretrained": folder_digest(place, ("*.safetensors", "*.json"))} if place else {}


def _build(build: Build) -> dict[str, Any]:
    from fim_core.training.launch import launch

    work, dataset, prompts = build.work(), build.inputs["tokenized_dataset"], build.inputs["fim_prompts"]
    result = launch(
        build.experiment,
        dataset.path,
        prompts.path / "tokenizer",
        work,
        on_event=build.on_event,
        provenance={asset: artifact.version for asset, artifact in build.inputs.items()},
        start=build.start,
    )
    shutil.copytree(result.model, build.output, dirs_exist_ok=True)
    shutil.copy2(work / "metrics.jsonl", build.output)
    # An attempt that was killed while it wrote a plan leaves a hidden file.
    shutil.copytree(work / "packs", build.output / "packs", ignore=shutil.ignore_patterns(".*"))
    if (trackers := Work(work).trackers).is_dir():
        # wandb's links to its latest run would lead nowhere.
        shutil.copytree(trackers, build.output / trackers.name, ignore=_links)
    _complete_recipe(build.output / "fim.json", granularity=dataset.counts["granularity"])
    counts = asdict(result)
    del counts["model"]
    return counts


def _links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_symlink()]


def _complete_recipe(recipe: Path, **known: str) -> None:
    """Add what only the pipeline knows to what serving needs to build prompts."""
    content = read_json(recipe) | known
    recipe.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


trained_checkpoint = Stage(
    asset="trained_checkpoint",
    upstream=("fim_prompts", "tokenized_dataset"),
    code=("training", "modeling", "packing"),
    options=_options,
    outside=_pretrained,
    build=_build,
)
