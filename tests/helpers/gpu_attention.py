"""Checks of attention backends in half precision against float64, on any device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from attention_reference import operands, run
from torch import nn

from fim_core.packing.layout import Layout, forest

Attend = Callable[..., torch.Tensor]

NAMES = ("output", "dq", "dk", "dv")

FACTOR = 2.0
"""Largest error of a backend, as a multiple of the error of torch's SDPA on the same data in the same precision."""

ROUNDING = 2.0**-8
"""Unit roundoff of bfloat16, which has 8 significant bits. A smaller error is accepted whatever that of SDPA is."""


@dataclass(frozen=True)
class Shape:
    """Heads, and options of a model's attention."""

    heads: int
    key_heads: int
    width: int
    window: int | None = None
    softcap: float | None = None

    def __str__(self) -> str:
        text = f"{self.heads}/{self.key_heads} x {self.width}"
        text += f", window {self.window}" if self.window else ""
        return text + (f", softcap {self.softcap:g}" if self.softcap else "")

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return self.width**-0.5


def layouts(size: int) -> dict[str, Layout]:
    """Packs of every kind, with lengths in proportion to `size`."""
    system, sheet, rows = size, 2 * size, 5
    lengths, shared = [], []
    for _ in range(3):
        for row in range(rows):
            lengths.append(system + sheet + size // 4 + 7 * row + 1)
            shared.append(system + sheet if row else system if len(lengths) > 1 else 0)
    depth = range(1, 7)
    flat = np.array([size, 3, 2 * size + 1, size // 2, 1, size + 17])
    made = {
        "tree": (np.array(lengths), np.array(shared)),
        "chain": (
            np.array([level * size // 2 + 5 for level in depth]),
            np.array([0, *(n * size // 2 for n in depth[:-1])]),
        ),
        "flat": (flat, np.zeros(len(flat), int)),
        "long": (np.array([12 * size + 13]), np.array([0])),
    }
    return {name: forest(*rows)[0] for name, rows in made.items()}


def definition(layout: Layout, window: int | None) -> torch.Tensor:
    """The dense mask from its definition, bool [T, T]: each segment sees its ancestors, and itself causally."""
    mask = torch.zeros(layout.tokens, layout.tokens, dtype=torch.bool)
    for segment in range(len(layout.segments)):
        own = slice(int(layout.starts[segment]), int(layout.stops[segment]))
        for ancestor in layout.path(segment)[:-1]:
            mask[own, int(layout.starts[ancestor]) : int(layout.stops[ancestor])] = True
        mask[own, own] = torch.ones(own.stop - own.start, own.stop - own.start, dtype=torch.bool).tril()
    if window is not None:
        positions = torch.from_numpy(layout.positions)
        mask &= positions[:, None] - positions < window
    return mask


def dense(mask: torch.Tensor) -> Attend:
    """Attention by the textbook with a dense mask, in the precision of its operands."""

    def attend(query, key, value, _layout, *, scale, window=None, softcap=None):
        group = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
        scores = query @ key.mT * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ value).transpose(1, 2)

    return attend


def torch_sdpa(mask: torch.Tensor) -> Attend:
    """torch's own attention with a dense mask; without softcap."""

    def attend(query, key, value, _layout, *, scale, window=None, softcap=None):
        group = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
        output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return output.transpose(1, 2)

    return attend


def tensors_on(layout: Layout, shape: Shape, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random query, key, value and gradient of the output, [1, T, heads, width]; the first three are leaves."""
    leaves = operands(layout, shape.heads, shape.key_heads, shape.width, dtype=dtype)
    gradient = operands(layout, shape.heads, shape.heads, shape.width, dtype=dtype, seed=1)[0]
    moved = [tensor.detach().to(device) for tensor in (*leaves, gradient)]
    return [*(tensor.requires_grad_() for tensor in moved[:3]), moved[3]]


def relative_errors(
    attends: dict[str, Attend], layout: Layout, shape: Shape, device: torch.device, dtype: torch.dtype
) -> dict[str, dict[str, float]]:
    """Error of outputs and gradients relative to float64, in the Frobenius norm, for each backend and for torch's SDPA.

    The reference computes in float64 from the same rounded operands, with the mask from its definition.
    """
    mask = definition(layout, shape.window).to(device)
    *leaves, gradient = tensors_on(layout, shape, device, dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    options: dict[str, Any] = {"scale": shape.scale, "window": shape.window, "softcap": shape.softcap}
    wanted = results(dense(mask), exact, layout, gradient.double(), options)
    plain = torch_sdpa(mask) if shape.softcap is None else dense(mask)
    errors = {}
    for name, attend in {"SDPA": plain, **attends}.items():
        found = results(attend, leaves, layout, gradient, options)
        assert all(tensor.dtype == dtype for tensor in found)
        errors[name] = {
            part: float((a.double() - b).norm() / b.norm()) for part, a, b in zip(NAMES, found, wanted, strict=True)
        }
    return errors


def results(
    attend: Attend, leaves: list[torch.Tensor], layout: Layout, gradient: torch.Tensor, options: dict[str, Any]
) -> list[torch.Tensor]:
    """Output, and gradients for query, key and value."""
    output, gradients = run(attend, leaves, layout, gradient, **options)
    return [output, *gradients]


def too_large(errors: dict[str, dict[str, float]]) -> list[str]:
    """The errors beyond the tolerance, in words; not-a-number is one."""
    bounds = {part: max(FACTOR * errors["SDPA"][part], ROUNDING) for part in NAMES}
    return [
        f"{name}: error of {part} is {error:.1e}, beyond {bounds[part]:.1e}"
        for name, parts in errors.items()
        for part, error in parts.items()
        if name != "SDPA" and not error <= bounds[part]
    ]


def leaks(attend: Attend, layout: Layout, shape: Shape, device: torch.device, dtype: torch.dtype) -> int:
    """Number of gradient values that reach a token off the path of the segment whose outputs have a gradient."""
    seen = definition(layout, None)
    *leaves, gradient = tensors_on(layout, shape, device, dtype)
    options: dict[str, Any] = {"scale": shape.scale, "window": shape.window, "softcap": shape.softcap}
    count = 0
    for segment in range(len(layout.segments)):
        own = slice(int(layout.starts[segment]), int(layout.stops[segment]))
        of_segment = torch.zeros_like(gradient)
        of_segment[:, own] = gradient[:, own]
        off_path = (~seen[own].any(dim=0)).to(device)
        for found in results(attend, leaves, layout, of_segment, options)[1:]:
            count += int((found[0, off_path] != 0).sum())
    return count


def sampled_error(
    attend: Attend, layout: Layout, shape: Shape, device: torch.device, dtype: torch.dtype, samples: int = 32
) -> tuple[float, list[torch.Tensor]]:
    """Relative error of the outputs of some tokens, each computed alone in float64; and outputs and gradients.

    For packs too long for a dense mask.
    """
    *leaves, gradient = tensors_on(layout, shape, device, dtype)
    options: dict[str, Any] = {"scale": shape.scale, "window": shape.window, "softcap": shape.softcap}
    found = results(attend, leaves, layout, gradient, options)
    group, wanted = shape.heads // shape.key_heads, []
    tokens = np.unique(np.linspace(0, layout.tokens - 1, samples).astype(int))
    query, key, value = (leaf.detach()[0].double() for leaf in leaves)
    for token in tokens.tolist():
        path = layout.path(int(layout.segment_of[token]))
        seen = torch.cat([torch.arange(layout.starts[p], layout.stops[p]) for p in path])
        seen = seen[seen <= token][-(shape.window or layout.tokens) :].to(device)
        keys, values = (tensor[seen].repeat_interleave(group, dim=1) for tensor in (key, value))
        weights = (torch.einsum("hd,thd->ht", query[token], keys) * shape.scale).softmax(-1)
        wanted.append(torch.einsum("ht,thd->hd", weights, values))
    expected = torch.stack(wanted)
    return float((found[0][0, tokens].double() - expected).norm() / expected.norm()), found


def milliseconds(attend: Attend, layout: Layout, shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Time of a forward and backward pass of one layer: the minimum of a few, after a first one."""
    *leaves, gradient = tensors_on(layout, shape, device, dtype)
    options: dict[str, Any] = {"scale": shape.scale, "window": shape.window, "softcap": shape.softcap}
    times = []
    for _ in range(4):
        began = time.perf_counter()
        results(attend, leaves, layout, gradient, options)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 1000 * min(times[1:])


def long_layout(tokens: int) -> Layout:
    """A pack of about so many tokens: one long prompt with four answers, and rows that share nothing."""
    prompt, answer = tokens // 2, tokens // 32
    lengths = [prompt + answer] * 4 + [tokens // 8] * 3
    shared = [0, prompt, prompt, prompt, 0, 0, 0]
    assert all(share < min(pair) for share, pair in zip(shared[1:], pairwise(lengths), strict=True))
    return forest(np.array(lengths), np.array(shared))[0]
