"""Attention over packs on a CPU, without masks or gathered keys, and with each pair of tokens computed once.

All descendants of a segment are the contiguous tokens after it (`Layout`), so attention over a pack is a short list
of plain attention calls on slices: each segment on itself, causally, and, for each segment that others continue, the
queries of all its descendants on its keys, without a mask. The partial results of a token are combined by their
log-sum-exp, as flash attention does between blocks (Dao et al., 2022, "FlashAttention", section 3.1). The backward pass
needs only the final output and log-sum-exp, and the gradients of each call are independent of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fim_core.packing import Layout

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

WINDOW_BLOCK = 256
"""Queries of one windowed call; limits the number of masked keys that are computed in vain."""


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention call: queries [q_start, q_stop) on keys [k_start, k_stop).

    Attributes:
        causal: queries and keys are the same tokens, and each query attends to keys up to its own.
        mask: which query attends to which key, bool [queries, keys]; None if all do, or if `causal`.
        first: no earlier call has these queries.
    """

    q_start: int
    q_stop: int
    k_start: int
    k_stop: int
    causal: bool = False
    mask: torch.Tensor | None = None
    first: bool = False


def attention_calls(layout: Layout, window: int | None) -> list[AttentionCall]:
    """The calls that make up attention over a pack; the first call of every query comes before all others.

    Args:
        layout: the pack's segments.
        window: a query attends to keys less than this many positions back along its path; None for all.
    """
    key = ("attention calls", window)
    if key not in layout.derived:
        layout.derived[key] = _calls(layout, window)
    return layout.derived[key]


def _calls(layout: Layout, window: int | None) -> list[AttentionCall]:
    if window is not None and int(layout.positions.max()) >= window:
        return _windowed_calls(layout, window)
    starts, stops, subtree_stops = layout.starts.tolist(), layout.stops.tolist(), layout.subtree_stops.tolist()
    own = [
        AttentionCall(start, stop, start, stop, causal=True, first=True)
        for start, stop in zip(starts, stops, strict=True)
    ]
    below = [
        AttentionCall(stop, subtree, start, stop)
        for start, stop, subtree in zip(starts, stops, subtree_stops, strict=True)
        if subtree > stop
    ]
    return own + below


def _windowed_calls(layout: Layout, window: int) -> list[AttentionCall]:
    """Calls for blocks of queries, each on the keys in its window, in its own segment and in each ancestor."""
    own, above = [], []
    for segment, (start, stop) in enumerate(zip(layout.starts.tolist(), layout.stops.tolist(), strict=True)):
        path = layout.path(segment)
        for q_start in range(start, stop, WINDOW_BLOCK):
            q_stop = min(q_start + WINDOW_BLOCK, stop)
            q_depth = int(layout.depths[segment]) + q_start - start
            oldest = q_depth - window + 1  # the smallest position that the block's first query attends to
            k_start = max(start, start + oldest - int(layout.depths[segment]))
            own.append(_windowed_call(q_start, q_stop, k_start, q_stop, q_start - k_start, window, first=True))
            for ancestor in path[-2::-1]:
                depth, length = int(layout.depths[ancestor]), int(layout.lengths[ancestor])
                if depth + length <= oldest:
                    break
                skip = max(oldest - depth, 0)
                k_start, k_stop = int(layout.starts[ancestor]) + skip, int(layout.stops[ancestor])
                above.append(
                    _windowed_call(q_start, q_stop, k_start, k_stop, q_depth - depth - skip, window, first=False)
                )
    return own + above


def _windowed_call(
    q_start: int, q_stop: int, k_start: int, k_stop: int, distance: int, window: int, *, first: bool
) -> AttentionCall:
    """A call with the mask of the window; `distance` is from the first key to the first query."""
    queries, keys = q_stop - q_start, k_stop - k_start
    if q_start == k_start and queries <= window:
        return AttentionCall(q_start, q_stop, k_start, k_stop, causal=True, first=first)
    back = torch.arange(queries)[:, None] + distance - torch.arange(keys)
    mask = (back >= 0) & (back < window)
    return AttentionCall(q_start, q_stop, k_start, k_stop, mask=None if mask.all() else mask, first=first)


class SegmentAttention(torch.autograd.Function):
    """Attention as a combination of calls.

    Query heads that share a key head are grouped in a dimension of their own, so keys and values are not repeated.
    Shapes: query [key heads, group, T, head], key and value [key heads, T, head]; output like query.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, calls: list[AttentionCall], scale: float
    ) -> torch.Tensor:
        heads, group, tokens, width = query.shape
        precise = torch.promote_types(query.dtype, torch.float32)
        output = query.new_empty(tokens, heads, group, width, dtype=precise).permute(1, 2, 0, 3)
        log_sums = query.new_empty(tokens, heads, group, dtype=precise).permute(1, 2, 0)
        for call in calls:
            q, k, v = _slices(call, query, key, value)
            out, log_sum = _forward(q, k, v, 0.0, call.causal, attn_mask=_additive(call, query.dtype), scale=scale)
            so_far = output[:, :, call.q_start : call.q_stop]
            sum_so_far = log_sums[:, :, call.q_start : call.q_stop]
            if call.first:
                so_far.copy_(out)
                sum_so_far.copy_(log_sum)
            else:
                share = torch.sigmoid(log_sum - sum_so_far)
                so_far.lerp_(out.to(precise), share.unsqueeze(-1))
                torch.logaddexp(sum_so_far, log_sum, out=sum_so_far)
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.calls, ctx.scale = calls, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, log_sums = ctx.saved_tensors
        precise = log_sums.dtype
        grad_query = torch.empty_like(query, dtype=precise)
        grad_key, grad_value = torch.zeros_like(key, dtype=precise), torch.zeros_like(value, dtype=precise)
        for call in ctx.calls:
            queries, keys = slice(call.q_start, call.q_stop), slice(call.k_start, call.k_stop)
            q, k, v = _slices(call, query, key, value)
            grad_q, grad_k, grad_v = _backward(
                grad_output[:, :, queries],
                q,
                k,
                v,
                output[:, :, queries],
                log_sums[:, :, queries].contiguous(),
                0.0,
                call.causal,
                attn_mask=_additive(call, query.dtype),
                scale=ctx.scale,
            )
            if call.first:
                grad_query[:, :, queries] = grad_q
            else:
                grad_query[:, :, queries] += grad_q
            grad_key[:, keys] += grad_k.sum(dim=1)
            grad_value[:, keys] += grad_v.sum(dim=1)
        return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _slices(
    call: AttentionCall, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of a call as [key heads, group, tokens, head]; views."""
    group = query.shape[1]
    k, v = (tensor[:, None, call.k_start : call.k_stop].expand(-1, group, -1, -1) for tensor in (key, value))
    return query[:, :, call.q_start : call.q_stop], k, v


def _additive(call: AttentionCall, dtype: torch.dtype) -> torch.Tensor | None:
    """The mask of a call as values to add to the scores.

    A query that attends to none of the keys gets a very negative log-sum-exp, so that the call has exactly no weight;
    minus infinity would result in NaN.
    """
    if call.mask is None:
        return None
    return torch.zeros(call.mask.shape, dtype=dtype).masked_fill_(~call.mask, torch.finfo(dtype).min / 4)


def segment_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, *, scale: float, window: int | None
) -> torch.Tensor:
    """Attention of a packed sequence on a CPU, in float32, float64 or bfloat16.

    Args:
        query: [1, heads, T, head].
        key, value: [1, key heads, T, head].
        layout: the segments.
        scale: factor on the scores.
        window: see `attention_calls`.

    Returns:
        [1, T, heads, head].
    """
    folded = query[0].unflatten(0, (key.shape[1], -1))
    output = SegmentAttention.apply(folded, key[0], value[0], attention_calls(layout, window), scale)
    return output.flatten(0, 1).transpose(0, 1)[None]
