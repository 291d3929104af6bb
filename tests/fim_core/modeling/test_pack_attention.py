"""Attention backends, compared with the definition: a dense mask in float64, one query at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fim_core.errors import FimError
from fim_core.modeling.attention import (
    attend_flex,
    attend_mask,
    attend_segments,
    attend_varlen,
    pack_mask,
    select_backend,
)
from fim_core.modeling.segments import WINDOW_BLOCK, attention_calls
from fim_core.packing.layout import Layout, forest


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Forests of rows up to six segments deep."""
    lengths, shared = [draw(st.integers(1, 12))], [0]
    for _ in range(draw(st.integers(0, 7))):
        length = draw(st.integers(1, 12))
        lengths.append(length)
        shared.append(draw(st.integers(0, min(length, lengths[-2]) - 1)))
    return forest(np.array(lengths), np.array(shared))[0]


def chain(depth: int) -> Layout:
    """A tree of the given depth in which a row ends at each level."""
    lengths = [3 * level + 2 for level in range(1, depth + 1)]
    shared = [0, *(3 * level for level in range(1, depth))]
    return forest(np.array(lengths), np.array(shared))[0]


def depth_of(layout: Layout) -> int:
    return max(len(layout.path(segment)) for segment in range(len(layout.segments)))


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
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, layout.tokens, count, width) for count in (heads, key_heads, key_heads)]
    # As in a model: [1, T, heads, width] in memory, seen as [1, heads, T, width].
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [leaf.requires_grad_() for leaf in leaves]


def run(attend, leaves, layout, gradient=None, **options):
    """Output, and gradients for query, key and value."""
    query, key, value = (leaf.transpose(1, 2) for leaf in leaves)
    output = attend(query, key, value, layout, scale=0.37, **options)
    gradient = (
        torch.sin(torch.arange(output.numel()).reshape(output.shape)).to(output) if gradient is None else gradient
    )
    return output.detach(), torch.autograd.grad(output, leaves, gradient)


def varlen_on_cpu(query, key, value, query_starts, key_starts, max_q, max_k, *, scale, window_size, enable_gqa) -> Any:
    """What torch's varlen kernel computes: sequences by themselves, causal from the bottom right, a window to the left."""
    left, right = window_size
    assert right == 0
    assert enable_gqa == (query.shape[1] != key.shape[1])
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


def attend_varlen_on_cpu(*args, **options):
    return attend_varlen(*args, kernel=varlen_on_cpu, **options)


BACKENDS = {"segments": attend_segments, "mask": attend_mask, "varlen": attend_varlen_on_cpu}


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=120, deadline=None)
@given(
    layout=layouts(),
    heads=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    window=st.sampled_from([None, 1, 3, 8, 100]),
)
def test_outputs_and_gradients_equal_the_definition(backend, layout, heads, window):
    leaves = operands(layout, *heads)
    output, gradients = run(BACKENDS[backend], leaves, layout, window=window)
    expected, expected_gradients = run(reference, leaves, layout, window=window)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("backend", BACKENDS)
def test_trees_of_every_depth(backend, depth):
    layout = chain(depth)
    assert depth_of(layout) == depth
    leaves = operands(layout, 4, 2)
    for window in (None, 5):
        output, gradients = run(BACKENDS[backend], leaves, layout, window=window)
        expected, expected_gradients = run(reference, leaves, layout, window=window)
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(layout=layouts(), window=st.sampled_from([None, 3]), softcap=st.sampled_from([None, 0.8]))
def test_flex_attention_equals_the_definition(layout, window, softcap):
    """Outputs only: torch has no backward pass of FlexAttention on a CPU."""
    query, key, value = (leaf.detach().transpose(1, 2) for leaf in operands(layout, 4, 2))
    options = {"scale": 0.37, "window": window, "softcap": softcap}
    output = attend_flex(query, key, value, layout, **options)
    torch.testing.assert_close(output, reference(query, key, value, layout, **options), rtol=1e-6, atol=1e-7)


def test_softcap_on_a_cpu_equals_the_definition():
    layout = chain(3)
    leaves = operands(layout, 4, 2)
    output, gradients = run(attend_mask, leaves, layout, window=4, softcap=0.5)
    expected, expected_gradients = run(reference, leaves, layout, window=4, softcap=0.5)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients, expected_gradients)
    for attend in (attend_segments, attend_varlen):
        with pytest.raises(FimError, match="softcap"):
            run(attend, leaves, layout, softcap=0.5)


@pytest.mark.parametrize("window", [None, WINDOW_BLOCK - 9, WINDOW_BLOCK + 9])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
def test_long_segments_in_training_precisions(dtype, tolerance, window):
    """Relative error, in the maximum norm, of 2e-5 in float32 and 2e-2 (five bits of eight) in bfloat16."""
    size = WINDOW_BLOCK
    lengths, shared = np.array([2 * size + 90, 2 * size + 50, 3 * size + 7]), np.array([0, 2 * size + 3, size + 5])
    layout = forest(lengths, shared)[0]
    exact = operands(layout, 4, 2, width=8)
    rounded = [leaf.detach().to(dtype).requires_grad_() for leaf in exact]
    exact = [leaf.detach().to(torch.float64).requires_grad_() for leaf in rounded]
    expected, expected_gradients = run(attend_mask, exact, layout, window=window)
    output, gradients = run(attend_segments, rounded, layout, window=window)
    assert output.dtype == dtype
    for found, wanted in zip([output, *gradients], [expected, *expected_gradients], strict=True):
        assert (found.to(torch.float64) - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_leaks_between_rows(backend, window):
    """The gradient of one row's outputs is exactly zero for every key, value and query off its path."""
    layout = forest(np.array([9, 9, 12, 5]), np.array([0, 4, 7, 0]))[0]
    seen = pack_mask(layout, None, torch.device("cpu"))
    for segment in range(len(layout.segments)):
        leaves = operands(layout, 4, 2)
        own = slice(int(layout.starts[segment]), int(layout.stops[segment]))
        gradient = torch.zeros(1, layout.tokens, 4, 4, dtype=torch.float64)
        gradient[:, own] = 1.0
        output, gradients = run(BACKENDS[backend], leaves, layout, gradient, window=window)
        del output
        off_path = ~seen[own].any(dim=0)
        for found in gradients:
            assert (found[0, off_path] == 0).all()
            assert torch.isfinite(found).all()


@pytest.mark.parametrize("window", [None, 4])
def test_flex_attention_does_not_see_other_rows(window):
    """Forward pass only: tokens off a row's path do not change its outputs by a single bit."""
    layout = forest(np.array([9, 9, 12, 5]), np.array([0, 4, 7, 0]))[0]
    seen = pack_mask(layout, None, torch.device("cpu"))
    query, key, value = (leaf.detach().transpose(1, 2) for leaf in operands(layout, 4, 2))
    before = attend_flex(query, key, value, layout, scale=0.37, window=window)
    for segment in range(len(layout.segments)):
        own = slice(int(layout.starts[segment]), int(layout.stops[segment]))
        off_path = ~seen[own].any(dim=0)
        others = [tensor.clone() for tensor in (key, value)]
        for tensor in others:
            tensor[:, :, off_path] += 1.0
        after = attend_flex(query, *others, layout, scale=0.37, window=window)
        assert torch.equal(after[:, own], before[:, own])


def test_no_pair_is_computed_twice():
    """Without a window, the calls compute exactly the attended pairs, plus the upper triangles of causal calls."""
    layout = chain(5)
    pairs = torch.zeros(layout.tokens, layout.tokens, dtype=torch.int)
    for call in attention_calls(layout, None):
        assert call.mask is None
        block = torch.ones(call.q_stop - call.q_start, call.k_stop - call.k_start, dtype=torch.int)
        pairs[call.q_start : call.q_stop, call.k_start : call.k_stop] += block.tril() if call.causal else block
    assert torch.equal(pairs.bool(), pack_mask(layout, None, torch.device("cpu")))
    assert pairs.max() == 1


@pytest.mark.parametrize(
    ("requested", "softcap", "backend", "replaced"),
    [
        ("auto", None, "segments", False),
        ("sdpa", None, "segments", False),
        ("flash_attention_2", None, "segments", True),
        ("flex_attention", None, "segments", True),
        ("auto", 50.0, "mask", False),
    ],
)
def test_backends_that_a_cpu_lacks_are_replaced(requested, softcap, backend, replaced):
    chosen, notice = select_backend(requested, torch.device("cpu"), torch.float32, softcap)
    assert chosen == backend
    assert (requested in notice) == replaced
    assert math.isclose(len(notice), 0) != replaced
