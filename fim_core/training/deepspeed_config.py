"""What DeepSpeed is told: the experiment's `deepspeed` section, and what the experiment says elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from fim_core.config import Experiment
from fim_core.errors import FimError

# DeepSpeed ignores keys that it does not know, and several that it knows would break what this engine promises
# (its own loss scale by batch, data order, parallelism over other axes). So only these pass.
PASSED_THROUGH = {
    "aio",
    "communication_data_type",
    "comms_logger",
    "data_types",
    "disable_allgather",
    "dump_state",
    "flops_profiler",
    "gradient_clipping",
    "gradient_predivide_factor",
    "memory_breakdown",
    "prescale_gradients",
    "seq_parallel_communication_data_type",
    "steps_per_print",
    "wall_clock_breakdown",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
}


def zero_stage(experiment: Experiment) -> int:
    """The stage of ZeRO, 0 to 3; 1 if the experiment does not say, as sharded optimizer states cost nothing.

    Raises:
        FimError: not a stage.
    """
    stage = experiment.deepspeed.get("zero_optimization", {}).get("stage", 1)
    if stage not in (0, 1, 2, 3):
        raise FimError(f"deepspeed.zero_optimization.stage is {stage}; the stages are 0, 1, 2 and 3.")
    return int(stage)


def offloads_optimizer(experiment: Experiment) -> bool:
    """Whether optimizer states are kept in host memory."""
    zero = experiment.deepspeed.get("zero_optimization", {})
    return zero.get("offload_optimizer", {}).get("device", "none") != "none" or bool(zero.get("cpu_offload"))


def deepspeed_config(experiment: Experiment, *, world_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """The whole configuration for deepspeed.initialize.

    Args:
        world_size: ranks over all machines.
        dtype: what the model computes in.

    Raises:
        FimError: a key of the `deepspeed` section that would be ignored, or that contradicts this engine; numbers that
            the device cannot compute in.
    """
    section = experiment.deepspeed
    for key in section:
        if key not in PASSED_THROUGH:
            raise FimError(
                f"deepspeed.{key} is not supported. What is passed to DeepSpeed: {', '.join(sorted(PASSED_THROUGH))}."
            )
    stage = zero_stage(experiment)
    if dtype == torch.float16 and not get_accelerator().is_fp16_supported():
        raise FimError("model.dtype is fp16, which this device cannot train in. Use fp32, or bf16 on a GPU.")
    if experiment.optimizer.type == "cpu_adam" and not offloads_optimizer(experiment):
        raise FimError(
            "optimizer.type is cpu_adam, which needs deepspeed.zero_optimization.offload_optimizer: {device: cpu}."
        )
    if offloads_optimizer(experiment) and stage == 0:
        raise FimError("deepspeed.zero_optimization.offload_optimizer needs stage 1, 2 or 3.")
    accumulation = experiment.gradient_accumulation_steps
    config: dict[str, Any] = {
        "steps_per_print": None,
        **section,
        "zero_optimization": {**section.get("zero_optimization", {}), "stage": stage},
        "train_micro_batch_size_per_gpu": experiment.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": experiment.micro_batch_size * accumulation * world_size,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
    if dtype == torch.bfloat16 and stage:
        # Sums of many small bf16 gradients lose their tail.
        config["data_types"] = {"grad_accum_dtype": "fp32", **section.get("data_types", {})}
    return config
