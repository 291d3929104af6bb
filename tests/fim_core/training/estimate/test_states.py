"""Memory of weights, gradients and optimizer states, against DeepSpeed's own figures and what its optimizers hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from fim_core.training.estimate.states import ModelStates, Parameters, model_states

BILLION = 10**9
WHOLE = Parameters(trained=BILLION, frozen=0, largest=BILLION // 10, small=0)


def states(stage: int, *, ranks: int = 8, dtype: torch.dtype = torch.bfloat16, **zero: Any) -> ModelStates:
    config = {"zero_optimization": {"stage": stage, **zero}}
    return model_states(WHOLE, config, dtype=dtype, ranks=ranks, on_gpu=True)


@pytest.mark.parametrize("ranks", [1, 8])
def test_zero_2_holds_what_deepspeed_says(ranks: int) -> None:
    """DeepSpeed counts gradients in half precision and in float32; the latter exist only in the optimizer's step."""
    _, theirs = estimate_zero2_model_states_mem_needs(BILLION, num_gpus_per_node=ranks, cpu_offload=False)
    ours = states(2, ranks=ranks)
    buckets = ours.buffers
    assert ours.weights + ours.gradients + ours.optimizer + ours.step == pytest.approx(theirs, rel=1e-6)
    assert ours.resident - buckets <= theirs


@pytest.mark.parametrize("ranks", [1, 8])
def test_zero_3_holds_what_deepspeed_says(ranks: int) -> None:
    """DeepSpeed counts 18 bytes a parameter and the largest layer. We count 16 at all times and 4 in the optimizer's step."""
    _, theirs, _ = estimate_zero3_model_states_mem_needs(
        BILLION, largest_layer_params=0, num_gpus_per_node=ranks, cpu_offload=False, cpu_offload_params=False
    )
    ours = states(3, ranks=ranks, sub_group_size=BILLION)
    held = ours.weights + ours.gradients + ours.optimizer
    assert (held, held + ours.step) == (16 * BILLION // ranks, 20 * BILLION // ranks)
    assert held < theirs < held + ours.step


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloaded_states_are_on_the_host(stage: int) -> None:
    kept, moved = states(stage), states(stage, offload_optimizer={"device": "cpu"})
    shares = 12 * BILLION // 8
    assert kept.host == 0
    assert moved.host >= shares
    assert kept.optimizer - moved.optimizer >= shares - 2 * WHOLE.largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_stage_needs_at_most_what_the_one_before_needs(dtype: torch.dtype) -> None:
    def held(stage: int) -> int:
        found = states(stage, dtype=dtype)
        return found.weights + found.gradients + found.optimizer + found.whole_gradients

    sizes = [held(stage) for stage in range(4)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
