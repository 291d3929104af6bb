"""Configuration of DeepSpeed: the experiment's `deepspeed` section, completed from its other options."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from fim_core.config import Experiment
from fim_core.config.deepspeed import zero_stage
from fim_core.errors import FimError


def deepspeed_config(
    experiment: Experiment, *, world_size: int, dtype: torch.dtype, saved_stage: int | None = None
) -> dict[str, Any]:
    """The complete configuration for deepspeed.initialize.

    Args:
        world_size: number of ranks on all machines.
        dtype: number format that the model computes in.
        saved_stage: ZeRO stage of the state that is resumed from; None without one.

    Raises:
        FimError: the device cannot train in that number format.
    """
    section = dict(experiment.deepspeed)
    # DeepSpeed does not know of the sequence-parallel groups, so it would ignore the format of sums over them.
    of_sequences = section.pop("seq_parallel_communication_data_type", None)
    if of_sequences and experiment.sequence_parallel_size > 1:
        section["communication_data_type"] = of_sequences
    stage = zero_stage(section, shards=world_size > 1 or dtype != torch.float32, saved=saved_stage)
    if dtype == torch.float16 and not get_accelerator().is_fp16_supported():
        raise FimError("model.dtype is fp16, which this device cannot train in. Use fp32, or bf16 on a GPU.")
    config: dict[str, Any] = {
        "steps_per_print": None,
        **section,
        "zero_optimization": {**section.get("zero_optimization", {}), "stage": stage},
        # DeepSpeed requires these, but they have no effect: the training loop sets the boundaries of steps and scales the
        # loss.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
    if dtype == torch.bfloat16 and stage:
        # Sums of many small bf16 gradients lose their tail.
        config["data_types"] = {"grad_accum_dtype": "fp32", **section.get("data_types", {})}
    return config
