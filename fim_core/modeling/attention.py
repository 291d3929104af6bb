"""Attention over packs as attention functions of transformers, one for each backend.

In each layer, transformers calls the function that `config._attn_implementation` names, with the keyword arguments of
the model's forward, among them `pack_layout` and `sequence_group`. It builds no mask for names that
`transformers.masking_utils` does not know, so no mask function is registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PretrainedConfig

from fim_core.errors import FimError
from fim_core.modeling.segments import segment_attention
from fim_core.modeling.sequence_parallel import SequenceGroup
from fim_core.packing import Layout

ATTENTION_NAME = "fim_pack"
BACKENDS = ("segments", "varlen", "flex", "mask")

Attend = Callable[..., torch.Tensor]


def attention_name(backend: str) -> str:
    """The value of `config._attn_implementation` for a backend."""
    return f"{ATTENTION_NAME}_{backend}"


def attends_over_packs(config: PretrainedConfig) -> bool:
    """Whether a model with this configuration uses one of the backends of this module."""
    return str(config._attn_implementation).startswith(ATTENTION_NAME)


def register() -> None:
    """Register the backends with transformers, as `fim_pack_<backend>`."""
    for backend, attend in (
        ("segments", attend_segments),
        ("varlen", attend_varlen),
        ("flex", attend_flex),
        ("mask", attend_mask),
    ):
        AttentionInterface.register(attention_name(backend), attention_function(attend))


def select_backend(
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    softcap: float | None,
    capability: tuple[int, int] | None = None,
) -> tuple[str, str]:
    """The best backend for this machine and model.

    Args:
        requested: `model.attn_implementation` of the experiment.
        device, dtype: of the training.
        softcap: bound on attention scores (Gemma 2), which flash kernels do not support.
        capability: compute capability of a GPU that is not in this machine; None: that of `device`.

    Returns:
        A name of BACKENDS, and a message if it is not the one requested, else an empty string.
    """
    wanted = {"flash_attention_2": "varlen", "flash_attention_3": "varlen", "flex_attention": "flex", "sdpa": "mask"}
    if device.type == "cpu":
        best = "segments" if softcap is None else "mask"
        possible = {best, "mask"}
    else:
        half = dtype in (torch.bfloat16, torch.float16)
        flash = half and device.type == "cuda" and (capability or torch.cuda.get_device_capability(device)) >= (8, 0)
        best = "varlen" if flash and softcap is None else "flex"
        possible = {best, "flex", "mask"}
    backend = wanted.get(requested, best)
    if requested == "sdpa" and device.type == "cpu":
        backend = best
    if backend in possible:
        return backend, ""
    return best, f"{requested} does not support this device, precision and model; {best} is used instead."


def attention_function(attend: Attend) -> Callable[..., tuple[torch.Tensor, None]]:
    """Wrap `attend` in the signature of transformers' attention functions."""

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        pack_layout: Layout | None = None,
        sequence_group: SequenceGroup | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        if pack_layout is None or attention_mask is not None:
            raise FimError(
                "This model is prepared for training on packs and was called without one. "
                "To generate with it, load its checkpoint, or call model.set_attn_implementation('sdpa')."
            )
        if dropout:
            raise FimError("Attention over packs does not support dropout. Set attention_dropout: 0 in model.config.")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        options = {"scale": scale, "window": sliding_window, "softcap": softcap}
        if sequence_group is None:
            return attend(query, key, value, pack_layout, **options), None
        repeats = sequence_group.key_repeats(key.shape[1])
        if repeats > 1:
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        query, key, value = (sequence_group.gather_tokens(tensor) for tensor in (query, key, value))
        return sequence_group.scatter_tokens(attend(query, key, value, pack_layout, **options)), None

    return attention


def attend_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention segment by segment on a CPU (`fim_core.modeling.segments`)."""
    if softcap is not None:
        raise FimError(
            "The CPU's attention over segments does not support softcap. Set model.attn_implementation: auto."
        )
    return segment_attention(query, key, value, layout, scale=scale, window=window)


def attend_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """scaled_dot_product_attention with a dense T x T mask: for any device, with time and memory quadratic in T."""
    mask = pack_mask(layout, window, query.device)
    if softcap is None:
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return output.transpose(1, 2)
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scores = softcap * torch.tanh((query @ key.mT * scale) / softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, torch.promote_types(query.dtype, torch.float32))
    return (weights.to(value.dtype) @ value).transpose(1, 2)


def attend_flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """FlexAttention over the blocks in which some query attends to some key. Not yet run on a GPU.

    On a CPU it runs uncompiled, which is slow and only for tests.
    """

    output = _flex(query)(
        query,
        key,
        value,
        score_mod=None if softcap is None else lambda score, *_: softcap * torch.tanh(score / softcap),
        block_mask=pack_block_mask(layout, window, query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)


def _flex(query: torch.Tensor) -> Callable[..., torch.Tensor]:
    """flex_attention, compiled on first use on GPUs."""
    if query.device.type == "cpu":
        return flex_attention
    if "flex" not in _compiled:
        _compiled["flex"] = torch.compile(flex_attention, dynamic=True)
    return _compiled["flex"]


_compiled: dict[str, Any] = {}


def attend_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    kernel: Callable[..., Any] = varlen_attn,
) -> torch.Tensor:
    """One call of torch's flash kernel for sequences of different lengths. Not yet run on a GPU.

    Each segment is a sequence whose queries are its own tokens and whose keys are gathered from its path. The causal
    mask is aligned to the bottom right, so the last query attends to all keys.

    Args:
        kernel: a function with the signature of `torch.nn.attention.varlen.varlen_attn`.
    """
    if softcap is not None:
        raise FimError("The flash kernel does not support softcap. Set model.attn_implementation: flex_attention.")
    gather = path_gather(layout, window, query.device)
    output = kernel(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1)[gather["keys"]],
        value[0].transpose(0, 1)[gather["keys"]],
        gather["query_starts"],
        gather["key_starts"],
        gather["longest_query"],
        gather["longest_key"],
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]


def path_gather(layout: Layout, window: int | None, device: torch.device) -> dict[str, Any]:
    """Indices that gather the tokens of each segment's path, concatenated over all segments.

    Returns:
        keys: int64, token of each gathered key; query_starts, key_starts: offsets of the segments, int32 [segments + 1];
        longest_query, longest_key: maximum length over segments.
    """
    name = ("gather", window, device)
    if name not in layout.derived:
        pieces: list[torch.Tensor] = []
        lengths: list[int] = []
        for segment, length in enumerate(layout.lengths.tolist()):
            path = [torch.arange(layout.starts[p], layout.stops[p]) for p in layout.path(segment)]
            tokens = torch.cat(path)
            if window is not None:
                tokens = tokens[-(window - 1 + length) :]
            pieces.append(tokens)
            lengths.append(len(tokens))
        layout.derived[name] = {
            "keys": torch.cat(pieces).to(device),
            "query_starts": torch.tensor([*layout.starts.tolist(), layout.tokens], dtype=torch.int32, device=device),
            "key_starts": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device),
            "longest_query": int(layout.lengths.max()),
            "longest_key": max(lengths),
        }
    return layout.derived[name]


def pack_mask(layout: Layout, window: int | None, device: torch.device) -> torch.Tensor:
    """Dense mask of a pack, bool [T, T]: row t is true at the tokens that token t attends to."""
    name = ("mask", window, device)
    if name not in layout.derived:
        tokens = torch.arange(layout.tokens, device=device)
        layout.derived[name] = _mask_rule(layout, window, device)(None, None, tokens[:, None], tokens)
    return layout.derived[name]


def pack_block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """Block mask of a pack for FlexAttention."""
    name = ("blocks", window, device)
    if name not in layout.derived:
        size = layout.tokens
        rule = _mask_rule(layout, window, device)
        layout.derived[name] = create_block_mask(rule, B=None, H=None, Q_LEN=size, KV_LEN=size, device=device)
    return layout.derived[name]


def _mask_rule(layout: Layout, window: int | None, device: torch.device) -> Callable[..., torch.Tensor]:
    """The rule that a query attends to itself and to earlier tokens of its own segment and of its ancestors."""
    stops = torch.from_numpy(layout.subtree_stops[layout.segment_of]).to(device)
    positions = torch.from_numpy(layout.positions).to(device)

    def rule(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        attended = (key <= query) & (query < stops[key])
        return attended if window is None else attended & (positions[query] - positions[key] < window)

    return rule
