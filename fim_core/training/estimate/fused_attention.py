"""Attention with the memory of a fused GPU kernel, for kernels that cannot run on the meta device."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig

from fim_core.modeling.attention import attention_function, attention_name, pack_mask
from fim_core.packing import Layout


class FusedAttention(torch.autograd.Function):
    """Allocates what FlexAttention and memory-efficient attention do: output and log-sum-exp, then three gradients.

    Shapes: query [1, heads, T, head], key and value [1, key heads, T, head], mask [T, T] or None; output like query.
    A boolean mask becomes a bias in the format of the query, which each layer keeps.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        bias = None if mask is None else query.new_empty(mask.shape)
        ctx.save_for_backward(query, key, value, output, log_sums, bias)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    window: int | None = None,
    dense: bool,
    **_: Any,
) -> torch.Tensor:
    """A backend for meta tensors; `dense` in place of `mask`, else of `flex`."""
    mask = pack_mask(layout, window, query.device) if dense else None
    return FusedAttention.apply(query, key, value, mask).transpose(1, 2)


def replace_gpu_kernels(config: PretrainedConfig, device: torch.device) -> None:
    """Replace FlexAttention, and the dense masks of a GPU, in the configuration of a model that trains on `device`.

    The block mask of FlexAttention, a few bytes for each block of 128 x 128 pairs, is not counted.
    """
    for backend in ("flex", "mask"):
        if device.type == "cuda" and config._attn_implementation == attention_name(backend):
            name = f"{attention_name(backend)}_footprint"
            AttentionInterface.register(name, attention_function(partial(attend, dense=backend == "mask")))
            config._attn_implementation = name
