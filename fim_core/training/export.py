"""The trained model as others load it: safetensors, tokenizer, generation config, model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine, zero
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fim_core.config import portable
from fim_core.files import read_json, write_json
from fim_core.modeling.load import build_model, save_model, training_dtype
from fim_core.store import digest
from fim_core.template import TEMPLATE
from fim_core.tokens import FimTokens
from fim_core.training.checkpoint import publish_folder
from fim_core.training.distributed import Ranks
from fim_core.training.job import Job, TrainResult
from fim_core.training.step_exports import StepExports

SERVING_SETTINGS = "fim.json"
"""What serving needs to build prompts as training did: the `data` and `model` sections, and the control tokens."""


def fim_tokens_of(job: Job) -> FimTokens:
    """The control tokens that the rows were made with, from the file beside the tokenizer's folder."""
    content = read_json(job.tokenizer.parent / "tokens.json")
    return FimTokens(**{**content, "end_ids": tuple(content["end_ids"]), "added": tuple(content["added"])})


def build_for(
    job: Job,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    partition: Mapping[str, Any] | None = None,
) -> PreTrainedModel | PeftModel:
    """The job's model before training: the same weights on every rank and in every attempt.

    Args:
        partition: see `build_model`.
    """
    config = job.experiment.model
    new_ids = [tokenizer.get_vocab()[token] for token in fim_tokens_of(job).added]
    return build_model(
        config,
        tokenizer,
        seed=job.experiment.seed,
        device=device,
        dtype=training_dtype(config, device),
        new_token_ids=new_ids,
        partition=partition,
    )


def export_model(
    job: Job, engine: DeepSpeedEngine, tokenizer: PreTrainedTokenizerFast, ranks: Ranks, result: TrainResult
) -> None:
    """Write the final model with its card; to be called on all ranks."""
    beside = job.work.model.with_name(f".{job.work.model.name}")
    if ranks.is_first and os.path.lexists(beside):
        shutil.rmtree(beside)
    _write_weights(job, engine, tokenizer, ranks, beside)
    if ranks.is_first:
        (beside / "README.md").write_text(model_card(job, result), encoding="utf-8")
        publish_folder(beside, job.work.model)


def export_step(
    job: Job,
    engine: DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerFast,
    ranks: Ranks,
    exports: StepExports,
    step: int,
) -> None:
    """Write the weights of a step into the `output_dir` of a `checkpoint` entry; to be called on all ranks.

    Raises:
        FimError: something else is in their place.
    """
    scratch = exports.begin(step) if ranks.is_first else exports.folder
    _write_weights(job, engine, tokenizer, ranks, scratch)
    if ranks.is_first:
        exports.publish(step)


def _write_weights(
    job: Job, engine: DeepSpeedEngine, tokenizer: PreTrainedTokenizerFast, ranks: Ranks, folder: Path
) -> None:
    model = engine.module.model
    gathered = gather_weights(model, ranks) if engine.zero_optimization_partition_weights() else None
    if not ranks.is_first:
        return
    if gathered is not None:
        # Partitioned parameters are hollow; a model of its own takes their place.
        model = build_for(job, tokenizer, torch.device("cpu"))
        model.load_state_dict(gathered)
    tokens = fim_tokens_of(job)
    save_model(model, tokenizer, tokens.end_ids, folder)
    sections = portable(job.experiment.model_dump(mode="json", include={"data", "model"}))
    write_json(folder / SERVING_SETTINGS, {**sections, "fim_tokens": vars(tokens)})
    if (template := job.tokenizer.parent / TEMPLATE).is_file():
        shutil.copyfile(template, folder / TEMPLATE)


def gather_weights(model: PreTrainedModel, ranks: Ranks) -> dict[str, torch.Tensor]:
    """All weights of a model that ZeRO-3 has partitioned, one at a time, in rank 0's main memory; empty on others."""
    weights: dict[str, torch.Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict(keep_vars=True).items():
        with zero.GatheredParameters([parameters[name]] if name in parameters else []):
            if ranks.is_first:
                weights[name] = tensor.detach().cpu().clone()
    return weights


def model_card(job: Job, result: TrainResult) -> str:
    """The model's README: what it is, what it was made of, how to load and prompt it."""
    experiment, tokens = job.experiment, fim_tokens_of(job)
    if experiment.data.fim_order == "psm":
        markers = f"{tokens.prefix}{{text before the cursor}}{tokens.suffix}{{text after it}}{tokens.middle}"
    else:
        markers = f"{tokens.suffix}{{text after the cursor}}{tokens.prefix}{{text before it}}{tokens.middle}"
    made_of = {
        "experiment": experiment.name,
        "experiment digest": digest(experiment.model_dump(mode="json")),
        **job.provenance,
        "base model": portable(experiment.model.model_dump())["name_or_path"] or "none, trained from scratch",
        "optimizer steps": result.steps,
        "rows, counted once an epoch": result.rows,
        "tokens": result.tokens,
        "held-out loss before, after (nats)": f"{_number(result.loss_before)}, {_number(result.loss_after)}",
        "packing": result.packing,
        "seed": experiment.seed,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in made_of.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [sql, fill-in-the-middle]
---

# {experiment.name}

Completes SQL at the cursor from the text before and after it, and from what the editor knows (history, tables, the open
file).

| | |
|---|---|
{table}

## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
```

## Prompt

Template `{portable(experiment.data.model_dump())["template"]}`. Each prompt ends in

```
{markers}
```

and the model writes the missing text, then `{tokens.end}`, at which generation stops. `{SERVING_SETTINGS}` holds the
settings that prompts were built with; `fim complete` and `fim serve` read it and build the same token ids.
"""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
