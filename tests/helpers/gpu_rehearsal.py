"""Rehearsal of the tests on GPUs on a machine without one, at small sizes, so that every line of them has run before.

With FIM_GPU_REHEARSAL=1 the device is the CPU, and what a CPU lacks is replaced: torch's varlen kernel by the reference
of the tests, and FlexAttention, which has no backward pass there, by a dense mask. It says nothing about GPUs.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TypeVar

import torch
from attention_reference import varlen_on_cpu
from gpu_attention import Attend
from gpu_runs import MODEL

from fim_core.modeling.attention import attend_flex, attend_mask, attend_varlen, select_backend

REHEARSAL = os.environ.get("FIM_GPU_REHEARSAL") == "1"

T = TypeVar("T")


def sized(on_gpu: T, in_rehearsal: T) -> T:
    """A size for GPUs, or for the rehearsal."""
    return in_rehearsal if REHEARSAL else on_gpu


BACKENDS: dict[str, Attend] = sized(
    {"varlen": attend_varlen, "flex": attend_flex, "mask": attend_mask},
    {"varlen": partial(attend_varlen, kernel=varlen_on_cpu), "flex": attend_mask, "mask": attend_mask},
)

TRAINED_MODEL = sized(
    MODEL, MODEL | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
)


def why_not(backend: str, device: torch.device, width: int = 64, softcap: float | None = None) -> str:
    """Why `select_backend` would not choose a backend on this device; empty if it would."""
    if REHEARSAL:
        return "flash kernels do not support softcap" if backend == "varlen" and softcap is not None else ""
    requested = {"varlen": "flash_attention_2", "flex": "flex_attention", "mask": "sdpa"}[backend]
    return select_backend(requested, device, torch.bfloat16, softcap, width)[1]
