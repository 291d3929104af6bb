"""Slow, obvious references of attention over packs, shared by the tests on CPUs and on GPUs."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn

from fim_core.packing.layout import Layout, forest


def chain(depth: int) -> Layout:
    """A tree of the given depth in which a row ends at each level."""
    lengths = [3 * level + 2 for level in range(1, depth + 1)]
    shared = [0, *(3 * level for level in range(1, depth))]
    return forest(np.array(lengths), np.array(shared))[0]


def reference(query, key, value, layout: Layout, *, scale: float, window: int | None, softcap: float | None = None):
    """Reference attention: walk up the tree from each token and attend to every token on the way."""
    outputs = []
    for token in range(layout.tokens):
        segment = int(layout.segment_of[token])
        seen = [
            place
            for ancestor in layout.path(segment)
            for place in range(int(layout.starts[ancestor]), int(layout.stops[ancestor]))
            if place <= token
        ]
        if window is not None:
            seen = seen[-window:]
        group = query.shape[1] // key.shape[1]
        keys, values = (tensor[0, :, seen].repeat_interleave(group, dim=0) for tensor in (key, value))
        scores = (keys @ query[0, :, token, :, None])[..., 0] * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        outputs.append((scores.softmax(-1)[:, None] @ values)[:, 0])
    return torch.stack(outputs)[None]


def operands(layout: Layout, heads: int, key_heads: int, width: int = 4, dtype=torch.float64, seed: int = 0):
    """Random query, key and value as leaves, [1, T, heads, width]."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, layout.tokens, count, width) for count in (heads, key_heads, key_heads)]
    # As in a model: [1, T, heads, width] in memory, seen as [1, heads, T, width].
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [leaf.requires_grad_() for leaf in leaves]


def run(attend, leaves, layout, gradient=None, *, scale=0.37, **options):
    """Output, and gradients for query, key and value."""
    query, key, value = (leaf.transpose(1, 2) for leaf in leaves)
    output = attend(query, key, value, layout, scale=scale, **options)
    gradient = (
        torch.sin(torch.arange(output.numel()).reshape(output.shape)).to(output) if gradient is None else gradient
    )
    return output.detach(), torch.autograd.grad(output, leaves, gradient)


def varlen_on_cpu(
    query, key, value, query_starts, key_starts, max_q, max_k, *, scale, window_size, enable_gqa=None
) -> Any:
    """What torch's varlen kernel computes: sequences by themselves, causal from the bottom right, a window to the left.

    Before torch 2.12 the kernel has no `enable_gqa`.
    """
    left, right = window_size
    assert right == 0
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        assert enable_gqa == (query.shape[1] != key.shape[1])
    assert all(tensor.is_contiguous() for tensor in (query, key, value))
    assert query_starts.dtype == key_starts.dtype == torch.int32
    outputs = []
    for q0, q1, k0, k1 in zip(query_starts, query_starts[1:], key_starts, key_starts[1:], strict=False):
        assert q1 - q0 <= max_q
        assert k1 - k0 <= max_k
        back = torch.arange(k1 - k0 - (q1 - q0), k1 - k0)[:, None] - torch.arange(k1 - k0)
        mask = (back >= 0) & (back <= left) if left >= 0 else back >= 0
        parts = [
            tensor[a:b].transpose(0, 1)[None] for tensor, a, b in ((query, q0, q1), (key, k0, k1), (value, k0, k1))
        ]
        out = torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale, enable_gqa=True)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)
