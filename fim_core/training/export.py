"""Export of trained models: safetensors, tokenizer, generation config and prompt recipe."""

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

from fim_core.modeling.load import build_model, checkpoint_dtype, training_dtype
from fim_core.modeling.save import save_model
from fim_core.prompt_format.recipe import Recipe, read_recipe, write_recipe
from fim_core.training.checkpoint import publish_folder
from fim_core.training.distributed import Ranks
from fim_core.training.job import Job
from fim_core.training.step_exports import StepExports


def recipe_of(job: Job) -> Recipe:
    """The recipe by which the job's prompts were built, from the file next to the tokenizer's folder."""
    return read_recipe(job.tokenizer.parent)


def build_for(
    job: Job,
    tokenizer: PreTrainedTokenizerFast,
    device: torch.device,
    partition: Mapping[str, Any] | None = None,
) -> PreTrainedModel | PeftModel:
    """Build the job's untrained model, with the same weights on every rank and in every attempt.

    Args:
        partition: see `build_model`.
    """
    config = job.experiment.model
    new_ids = [tokenizer.get_vocab()[token] for token in recipe_of(job).fim_tokens.added]
    return build_model(
        config,
        tokenizer,
        seed=job.experiment.seed,
        device=device,
        dtype=training_dtype(config, device),
        new_token_ids=new_ids,
        partition=partition,
    )


def export_model(job: Job, engine: DeepSpeedEngine, tokenizer: PreTrainedTokenizerFast, ranks: Ranks) -> None:
    """Write the final model; to be called on all ranks."""
    scratch = job.work.model.with_name(f".{job.work.model.name}")
    if ranks.is_first and os.path.lexists(scratch):
        shutil.rmtree(scratch)
    _write_weights(job, engine, tokenizer, ranks, scratch)
    if ranks.is_first:
        publish_folder(scratch, job.work.model)


def export_step(
    job: Job,
    engine: DeepSpeedEngine,
    tokenizer: PreTrainedTokenizerFast,
    ranks: Ranks,
    exports: StepExports,
    step: int,
) -> None:
    """Write the weights of a step to the `output_dir` of a `checkpoint` entry; to be called on all ranks.

    Raises:
        FimError: something that this run did not write is in the way.
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
        # Parameters that ZeRO-3 partitions are empty between uses, so the gathered weights go into a second model.
        model = build_for(job, tokenizer, torch.device("cpu"))
        model.load_state_dict(gathered)
    recipe = recipe_of(job)
    save_model(model, tokenizer, recipe.fim_tokens.end_ids, folder, dtype=checkpoint_dtype(job.experiment.model))
    write_recipe(folder, recipe)


def gather_weights(model: PreTrainedModel, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Gather the weights of a model that ZeRO-3 has partitioned, one at a time, in main memory; empty except on rank 0."""
    weights: dict[str, torch.Tensor] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict(keep_vars=True).items():
        with zero.GatheredParameters([parameters[name]] if name in parameters else []):
            if ranks.is_first:
                weights[name] = tensor.detach().cpu().clone()
    return weights
