"""Section `deepspeed`: the DeepSpeed options that an experiment may set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fim_core.config.base import closest
from fim_core.config.numbers import parse_numbers_in

# DeepSpeed ignores unknown keys, and several known ones would break guarantees of this trainer (loss normalization over
# the whole batch, data order, parallelism over other axes). So only these are passed on.
_PASSED_THROUGH = {
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

_OWNERS = {
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "train_batch_size": "batch_rows",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "bf16": "model.dtype",
    "bfloat16": "model.dtype",
    "fp16": "model.dtype",
}


DIAGNOSTICS = frozenset(
    {"comms_logger", "dump_state", "flops_profiler", "memory_breakdown", "steps_per_print", "wall_clock_breakdown"}
)
"""Options that only report. They are not part of the version of a checkpoint."""

DEFAULT_CLIPPING = 1.0
"""DeepSpeed's default, which also applies if the option is not given."""


def checked_section(section: dict[str, Any]) -> dict[str, Any]:
    """Validate the section, parse its numbers (`5e8`, `10%` or `2^18` may be given as text) and fill in `gradient_clipping`.

    Raises:
        ValueError: a key that belongs to another section, or that DeepSpeed or this trainer would ignore; a ZeRO stage
            that does not exist or does not fit the other options; two different formats for sums of gradients; a
            `gradient_clipping` that is not a number >= 0.
    """
    section = parse_numbers_in(section)
    for key in section:
        if key in _OWNERS:
            raise ValueError(f"`{key}` is set by `{_OWNERS[key]}` of the experiment, not here")
        if key not in _PASSED_THROUGH:
            known = sorted(_PASSED_THROUGH)
            raise ValueError(f"`{key}` is not passed to DeepSpeed{closest(key, known)} ({', '.join(known)} are)")
    if not isinstance(section.get("zero_optimization", {}), dict):
        raise ValueError("`zero_optimization` is a section, for example {stage: 2}")
    stage = section.get("zero_optimization", {}).get("stage")
    if stage not in (None, 0, 1, 2, 3):
        raise ValueError(f"zero_optimization.stage is {stage}; the stages are 0, 1, 2 and 3")
    if offloads_optimizer(section) and stage == 0:
        raise ValueError("zero_optimization.offload_optimizer needs stage 1, 2 or 3")
    of_sequences = section.get("seq_parallel_communication_data_type")
    if of_sequences and section.get("communication_data_type", of_sequences) != of_sequences:
        raise ValueError(
            "communication_data_type and seq_parallel_communication_data_type differ, but gradients are summed over all "
            "ranks at once; leave one of them out"
        )
    clipping = section.get("gradient_clipping", DEFAULT_CLIPPING)
    if isinstance(clipping, bool) or not isinstance(clipping, int | float) or not 0 <= clipping < math.inf:
        raise ValueError(f"gradient_clipping is {clipping!r}; give the maximum gradient norm, or 0 for no clipping")
    return section | {"gradient_clipping": float(clipping)}


def zero_stage(section: Mapping[str, Any], *, shards: bool, saved: int | None = None) -> int:
    """The ZeRO stage of a run: the section's, else that of the resumed state, else 1 if ZeRO is of use and 0 if not.

    Args:
        shards: whether there are several ranks to shard over, or half precision. Otherwise ZeRO would only copy all
            weights and gradients into its own buffers.
        saved: stage of the resumed state. States of stage 0 cannot be converted to another stage, or back.
    """
    asked = section.get("zero_optimization", {}).get("stage")
    if asked is not None:
        return int(asked)
    if saved is not None:
        return saved
    return 1 if shards or offloads_optimizer(section) else 0


def offloads_optimizer(section: Mapping[str, Any]) -> bool:
    """Whether optimizer states are kept in host memory."""
    zero = section.get("zero_optimization", {})
    return zero.get("offload_optimizer", {}).get("device", "none") != "none" or bool(zero.get("cpu_offload"))
