"""Attention over packs as attention functions of transformers, one for each backend.

In each layer, transformers calls the function that `config._attn_implementation` names, with the keyword arguments of
the model's forward, among them `pack_layout` and `sequence_group`. It builds no mask for names that
`transformers.masking_utils` does not know, so no mask function is registered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PretrainedConfig

from fim_core.errors import FimError
from fim_core.modeling.pack_masks import pack_block_mask, pack_mask
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
    head_size: int,
    capability: tuple[int, int] | None = None,
) -> tuple[str, str]:
    """The best backend for this machine and model.

    Args:
        requested: `model.attn_implementation` of the experiment.
        device, dtype: of the training.
        softcap: bound on attention scores (Gemma 2), which flash kernels do not support.
        head_size: width of an attention head. Flash kernels take multiples of 8 up to 256, FlexAttention 16 and more.
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
        flash = device.type == "cuda" and half and (capability or torch.cuda.get_device_capability(device)) >= (8, 0)
        flash = flash and softcap is None and head_size % 8 == 0 and head_size <= 256
        fused = ["varlen"] * flash + ["flex"] * (head_size >= 16)
        best = [*fused, "mask"][0]
        possible = {*fused, "mask"}
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
    # With a mask and fewer key heads than query heads, a GPU would fall back to scores of all heads in memory.
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    if softcap is None:
        output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return output.transpose(1, 2)
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
    kernel: Callable[..., Any] | None = None,
) -> torch.Tensor:
    """FlexAttention over the blocks in which some query attends to some key. Not yet run on a GPU.

    Args:
        kernel: a function with the signature of `torch.nn.attention.flex_attention.flex_attention`. Default: that
            function, compiled on a GPU; on a CPU it is not compiled, which is slow and only for tests.
    """
    on_cpu = query.device.type == "cpu"
    if kernel is None:
        kernel = flex_attention if on_cpu else compiled_flex_attention()
    output = kernel(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap(softcap),
        block_mask=pack_block_mask(layout, window, query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        # Otherwise packs under 128 tokens are compiled once more, for a kernel that is meant for decoding.
        kernel_options=None if on_cpu else {"BACKEND": "TRITON"},
    )
    return output.transpose(1, 2)


def _cap(softcap: float) -> Callable[..., torch.Tensor]:
    """The bound on scores, as FlexAttention applies it."""

    def cap(score: torch.Tensor, _batch: Any, _head: Any, _query: Any, _key: Any) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


@cache
def compiled_flex_attention(backend: str | Callable[..., Any] = "inductor") -> Callable[..., torch.Tensor]:
    """flex_attention, compiled when it is first called, and once more for lengths other than the first.

    Not with `dynamic=True`, which would turn `scale` and the block size into variables of the kernel, too. `fullgraph`
    raises an error where torch would otherwise compute all T x T scores without a kernel.
    """
    from torch._dynamo import config

    # Lengths, windows, and passes with and without gradients are compiled one by one; torch stops after 8.
    config.recompile_limit = max(config.recompile_limit, 64)
    # The kernels take `scale` and softcap as constants. torch would make a number that has changed a variable, which
    # FlexAttention cannot be compiled with (pytorch/pytorch#147756).
    config.specialize_float = True
    return torch.compile(flex_attention, fullgraph=True, backend=backend)


# Before torch 2.12 the kernel takes fewer key heads than query heads without saying so.
_VARLEN_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


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

    A sequence's queries are the tokens of a run of segments, and its keys are those of the run's path (`path_gather`).
    The causal mask is aligned to the bottom right, so the last query attends to all keys.

    Args:
        kernel: a function with the signature of `torch.nn.attention.varlen.varlen_attn`.
    """
    if softcap is not None:
        raise FimError("The flash kernel does not support softcap. Set model.attn_implementation: flex_attention.")
    gather = path_gather(layout, window, query.device)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if gather["keys"] is not None:
        keys, values = (_Gather.apply(tensor, gather["keys"]) for tensor in (keys, values))
    output = kernel(
        queries.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        gather["query_starts"],
        gather["key_starts"],
        gather["longest_query"],
        gather["longest_key"],
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **({"enable_gqa": query.shape[1] != key.shape[1]} if _VARLEN_GROUPS else {}),
    )
    return output[None]


class _Gather(torch.autograd.Function):
    """Rows of a tensor by index, with gradients summed in float32.

    A token of a shared prefix is gathered once for each row below it. In the backward pass of torch's own indexing,
    each of these additions would be rounded to the tensor's dtype.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Gather; tensor [T, heads, head size], index int64 [n]."""
        ctx.save_for_backward(index)
        ctx.shape = tensor.shape
        return tensor.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Sum the gradients of each row's copies."""
        (index,) = ctx.saved_tensors
        exact = torch.promote_types(gradient.dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=exact, device=gradient.device)
        total.index_add_(0, index, gradient.to(exact))
        return total.to(gradient.dtype), None


def path_gather(layout: Layout, window: int | None, device: torch.device) -> dict[str, Any]:
    """The sequences of a pack for kernels of different lengths, and the tokens of their keys.

    The queries of a sequence are a run of segments that each continue the one before it: its tokens are contiguous, and
    all are on the path of the last. So the keys are at most the tokens of all rows, each row with its whole prefix.

    Returns:
        keys: int64, token of each key, concatenated over sequences; None if they are the tokens of the pack, in order;
        query_starts, key_starts: offsets of the sequences, int32 [sequences + 1]; longest_query, longest_key: maximum
        length over sequences.
    """
    name = ("gather", window, device)
    if name not in layout.derived:
        begins = layout.parents != np.arange(-1, len(layout.segments) - 1)
        begins[0] = True
        firsts = np.flatnonzero(begins)
        offsets = [*layout.starts[firsts].tolist(), layout.tokens]
        pieces: list[torch.Tensor] = []
        for first, start, stop in zip(firsts.tolist(), offsets, offsets[1:], strict=False):
            ancestors = layout.path(first)[:-1]
            path = [torch.arange(layout.starts[p], layout.stops[p]) for p in ancestors]
            tokens = torch.cat([*path, torch.arange(start, stop)])
            pieces.append(tokens if window is None else tokens[-(window - 1 + stop - start) :])
        lengths = [len(piece) for piece in pieces]
        shared = sum(lengths) > layout.tokens
        layout.derived[name] = {
            "keys": torch.cat(pieces).to(device) if shared else None,
            "query_starts": torch.tensor(offsets, dtype=torch.int32, device=device),
            "key_starts": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device),
            "longest_query": int(np.diff(offsets).max()),
            "longest_key": max(lengths),
        }
    return layout.derived[name]
