"""Attention over packs on a CPU: no mask, no gathered keys, each pair of tokens computed once.

All descendants of a segment are the contiguous tokens behind it (`Layout`), so attention over a pack is a short list
of plain attention calls on slices: each segment on itself, causally, and, for each segment that others continue, all
its descendants' queries on its keys, without a mask. A token's partial results are put together by their log-sum-exp,
as flash attention does between blocks (Dao et al., 2022, "FlashAttention", section 3.1). The backward pass needs only
the final output and log-sum-exp, and then each part's gradients are independent of the others'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fim_core.packing import Layout

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

WINDOW_BLOCK = 256
"""Queries that one windowed call takes; it bounds the keys that are computed for nothing."""


@dataclass(frozen=True, eq=False)
class Part:
    """One attention call: queries [q_start, q_stop) on keys [k_start, k_stop).

    Attributes:
        causal: queries and keys are the same tokens, each query sees keys up to its own.
        mask: which query sees which key, bool [queries, keys]; None for all of them, or where `causal` says it.
        first: no earlier part has these queries.
    """

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int
    causal: bool = False
    mask: torch.Tensor | None = None
    first: bool = False


def attention_parts(layout: Layout, window: int | None) -> list[Part]:
    """The calls that make up attention over a pack; those that begin a query's sum come first.

    Args:
        layout: the pack's segments.
        window: a query sees keys less than so many positions back along its path; None for all.
    """
    key = ("parts", window)
    if key not in layout.derived:
        layout.derived[key] = _parts(layout, window)
    return layout.derived[key]


def _parts(layout: Layout, window: int | None) -> list[Part]:
    if window is not None and int(layout.positions.max()) >= window:
        return _windowed_parts(layout, window)
    starts, stops, subtree_stops = layout.starts.tolist(), layout.stops.tolist(), layout.subtree_stops.tolist()
    own = [Part(start, stop, start, stop, causal=True, first=True) for start, stop in zip(starts, stops, strict=True)]
    below = [
        Part(stop, subtree, start, stop)
        for start, stop, subtree in zip(starts, stops, subtree_stops, strict=True)
        if subtree > stop
    ]
    return own + below


def _windowed_parts(layout: Layout, window: int) -> list[Part]:
    """Blocks of queries, each on what lies in the window in its own segment and in each ancestor."""
    own, above = [], []
    for segment, (start, stop) in enumerate(zip(layout.starts.tolist(), layout.stops.tolist(), strict=True)):
        path = layout.path(segment)
        for q_start in range(start, stop, WINDOW_BLOCK):
            q_stop = min(q_start + WINDOW_BLOCK, stop)
            q_depth = int(layout.depths[segment]) + q_start - start
            oldest = q_depth - window + 1  # the smallest position that the block's first query sees
            k_start = max(start, start + oldest - int(layout.depths[segment]))
            own.append(_part(q_start, q_stop, k_start, q_stop, q_start - k_start, window, first=True))
            for ancestor in path[-2::-1]:
                depth, length = int(layout.depths[ancestor]), int(layout.lengths[ancestor])
                if depth + length <= oldest:
                    break
                skip = max(oldest - depth, 0)
                k_start, k_stop = int(layout.starts[ancestor]) + skip, int(layout.stops[ancestor])
                above.append(_part(q_start, q_stop, k_start, k_stop, q_depth - depth - skip, window, first=False))
    return own + above


def _part(q_start: int, q_stop: int, k_start: int, k_stop: int, distance: int, window: int, *, first: bool) -> Part:
    """A part with the mask that the window asks for; `distance` is from the first key to the first query."""
    queries, keys = q_stop - q_start, k_stop - k_start
    if q_start == k_start and queries <= window:
        return Part(q_start, q_stop, k_start, k_stop, causal=True, first=first)
    back = torch.arange(queries)[:, None] + distance - torch.arange(keys)
    mask = (back >= 0) & (back < window)
    return Part(q_start, q_stop, k_start, k_stop, mask=None if mask.all() else mask, first=first)


class SegmentAttention(torch.autograd.Function):
    """Attention as a sum of parts.

    Query heads that share a key head are folded beside it, so keys and values are not repeated.
    Shapes: query [key heads, group, T, head], key and value [key heads, T, head]; output like query.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parts: list[Part], scale: float
    ) -> torch.Tensor:
        heads, group, tokens, width = query.shape
        precise = torch.promote_types(query.dtype, torch.float32)
        output = torch.empty(tokens, heads, group, width, dtype=precise).permute(1, 2, 0, 3)
        log_sums = torch.empty(tokens, heads, group, dtype=precise).permute(1, 2, 0)
        for part in parts:
            q, k, v = _slices(part, query, key, value)
            out, log_sum = _forward(q, k, v, 0.0, part.causal, attn_mask=_additive(part, query.dtype), scale=scale)
            so_far = output[:, :, part.q_start : part.q_stop]
            sum_so_far = log_sums[:, :, part.q_start : part.q_stop]
            if part.first:
                so_far.copy_(out)
                sum_so_far.copy_(log_sum)
            else:
                share = torch.sigmoid(log_sum - sum_so_far)
                so_far.lerp_(out.to(precise), share.unsqueeze(-1))
                torch.logaddexp(sum_so_far, log_sum, out=sum_so_far)
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.parts, ctx.scale = parts, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sums = ctx.saved_tensors
        precise = log_sums.dtype
        grad_query = torch.empty_like(query, dtype=precise)
        grad_key, grad_value = torch.zeros_like(key, dtype=precise), torch.zeros_like(value, dtype=precise)
        for part in ctx.parts:
            queries, keys = slice(part.q_start, part.q_stop), slice(part.k_start, part.k_stop)
            q, k, v = _slices(part, query, key, value)
            grad_q, grad_k, grad_v = _backward(
                grad_output[:, :, queries],
                q,
                k,
                v,
                output[:, :, queries],
                log_sums[:, :, queries].contiguous(),
                0.0,
                part.causal,
                attn_mask=_additive(part, query.dtype),
                scale=ctx.scale,
            )
            if part.first:
                grad_query[:, :, queries] = grad_q
            else:
                grad_query[:, :, queries] += grad_q
            grad_key[:, keys] += grad_k.sum(dim=1)
            grad_value[:, keys] += grad_v.sum(dim=1)
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _slices(
    part: Part, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The part's queries, keys and values as [key heads, group, tokens, head]; views."""
    group = query.shape[1]
    k, v = (tensor[:, None, part.k_start : part.k_stop].expand(-1, group, -1, -1) for tensor in (key, value))
    return query[:, :, part.q_start : part.q_stop], k, v


def _additive(part: Part, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask as numbers to add to the scores.

    A query that sees none of a part's keys gets a hugely negative log-sum-exp, so that the part weighs exactly nothing;
    minus infinity would turn into NaN.
    """
    if part.mask is None:
        return None
    return torch.zeros(part.mask.shape, dtype=dtype).masked_fill_(~part.mask, torch.finfo(dtype).min / 4)


def segment_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, *, scale: float, window: int | None
) -> torch.Tensor:
    """Attention of a packed sequence on a CPU, in float32, float64 or bfloat16.

    Args:
        query: [1, heads, T, head].
        key, value: [1, key heads, T, head].
        layout: the segments.
        scale: factor on the scores.
        window: sliding window in positions along the path, or None.

    Returns:
        [1, T, heads, head].
    """
    folded = query[0].unflatten(0, (key.shape[1], -1))
    output = SegmentAttention.apply(folded, key[0], value[0], attention_parts(layout, window), scale)
    return output.flatten(0, 1).transpose(0, 1)[None]
