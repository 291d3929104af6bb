"""Attention backends, compared with the definition: a dense mask in float64, one query at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from attention_reference import chain, operands, reference, run, varlen_on_cpu
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from fim_core.errors import FimError
from fim_core.modeling.attention import (
    attend_flex,
    attend_mask,
    attend_segments,
    attend_varlen,
    compiled_flex_attention,
    path_gather,
    select_backend,
)
from fim_core.modeling.pack_masks import BLOCK, attended_blocks, pack_block_mask, pack_mask
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


def depth_of(layout: Layout) -> int:
    return max(len(layout.path(segment)) for segment in range(len(layout.segments)))


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


@st.composite
def long_layouts(draw: st.DrawFn) -> Layout:
    """Forests of rows of several blocks; lengths often end at a block's edge."""
    lengths = draw(st.lists(st.sampled_from([1, 60, 127, 128, 129, 256, 300, 513]), min_size=1, max_size=6))
    shared = [0]
    for before, length in itertools.pairwise(lengths):
        shared.append(draw(st.integers(0, min(before, length) - 1)))
    return forest(np.array(lengths), np.array(shared))[0]


def by_blocks(mask: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Which blocks of a dense mask hold a pair, and which hold all; pairs beyond the mask do not exist."""
    blocks = -(-len(mask) // BLOCK)
    padded = torch.zeros(blocks * BLOCK, blocks * BLOCK, dtype=torch.bool)
    padded[: len(mask), : len(mask)] = mask
    tiles = padded.reshape(blocks, BLOCK, blocks, BLOCK)
    return tiles.any(3).any(1).numpy(), tiles.all(3).all(1).numpy()


@settings(max_examples=60, deadline=None)
@given(layout=long_layouts(), window=st.sampled_from([None, 1, 100, 128, 300, 5000]))
def test_attended_blocks_equal_those_of_the_dense_mask(layout, window):
    """With a window, blocks may be left to the rule that could be skipped or taken whole, but never the other way."""
    some, every = attended_blocks(layout, window)
    expected_some, expected_every = by_blocks(pack_mask(layout, window, torch.device("cpu")))
    if window is None:
        assert (some == expected_some).all()
        assert (every == expected_every).all()
    assert not (expected_some & ~some).any()
    assert not (every & ~expected_every).any()


@pytest.mark.parametrize("window", [None, 150])
def test_block_mask_equals_that_of_torch(window):
    """torch evaluates all pairs; blocks of keys are listed in their order."""
    layout, cpu = forest(np.array([300, 420, 700, 129]), np.array([0, 128, 290, 0]))[0], torch.device("cpu")
    made = pack_block_mask(layout, window, cpu)
    torchs = create_block_mask(made.mask_mod, None, None, layout.tokens, layout.tokens, device="cpu")
    assert made.shape == torchs.shape
    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices")
    for name in names if window is None else ():
        assert torch.equal(getattr(made, name), getattr(torchs, name)), name
    dense = create_mask(made.mask_mod, None, None, layout.tokens, layout.tokens, device="cpu")
    assert torch.equal(dense[0, 0], pack_mask(layout, window, cpu))


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (150, 0.8)])
def test_flex_attention_over_several_blocks_equals_the_dense_mask(window, softcap):
    layout = forest(np.array([300, 420, 700, 129]), np.array([0, 128, 290, 0]))[0]
    tensors = [leaf.detach().transpose(1, 2) for leaf in operands(layout, 4, 2)]
    options = {"scale": 0.37, "window": window, "softcap": softcap}
    found, expected = (attend(*tensors, layout, **options) for attend in (attend_flex, attend_mask))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (150, None), (None, 20.0)])
def test_compiled_flex_attention_equals_the_dense_mask(window, softcap):
    """Compiled kernels skip blocks by the block mask, which the uncompiled function does not look at.

    Compiled for each length: torch 2.13 writes wrong C++ where the length of a tensor in the mask's rule is a variable.
    """
    for lengths, shared in (([300, 420, 700, 129], [0, 128, 290, 0]), ([900], [0]), ([50, 900, 300], [0, 40, 257])):
        torch._dynamo.reset()
        layout = forest(np.array(lengths), np.array(shared))[0]
        leaves = operands(layout, 4, 2, width=16, dtype=torch.float32)
        tensors = [leaf.detach().transpose(1, 2) for leaf in leaves]
        options = {"scale": 0.25, "window": window, "softcap": softcap}
        found = attend_flex(*tensors, layout, kernel=compiled_flex_attention(), **options)
        torch.testing.assert_close(found, attend_mask(*tensors, layout, **options), rtol=1e-4, atol=1e-5)


def test_flex_attention_is_compiled_once_for_all_lengths_but_the_first():
    """Neither the scale nor the softcap becomes a variable of the kernel."""
    graphs = []

    def count(graph, _inputs):
        graphs.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    kernel = compiled_flex_attention(count)
    for scale, softcap in ((0.37, 0.8), (0.25, 20.0)):
        for lengths in ([200, 300], [200, 500], [400, 500, 600], [300, 1500]):
            layout = forest(np.array(lengths), np.array([0, *[100] * (len(lengths) - 1)]))[0]
            tensors = [leaf.detach().transpose(1, 2) for leaf in operands(layout, 4, 2, width=16)]
            attend_flex(*tensors, layout, scale=scale, window=50, softcap=softcap, kernel=kernel)
    assert len(graphs) == 3
    assert not any("item()" in code for code in graphs)


def test_gathered_keys_are_at_most_the_tokens_of_the_rows():
    """Many rows that leave the first one at different places do not repeat its beginning for each of its segments."""
    lengths, shared = np.full(30, 100), np.array([0, *range(90, 61, -1)])
    layout = forest(lengths, shared)[0]
    gather = path_gather(layout, None, torch.device("cpu"))
    assert len(gather["keys"]) == lengths.sum()
    flat = forest(lengths, np.zeros(30, int))[0]
    assert path_gather(flat, None, torch.device("cpu"))["keys"] is None


def test_gradients_of_shared_tokens_are_summed_in_float32():
    """A thousand contributions of 1 to a sum in bfloat16 would end at 256."""
    layout = forest(np.full(1000, 2), np.array([0, *[1] * 999]))[0]
    leaves = operands(layout, 1, 1, width=8, dtype=torch.bfloat16)
    _, gradients = run(attend_varlen_on_cpu, leaves, layout, gradient=torch.ones(1, layout.tokens, 1, 8).bfloat16())
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    _, expected = run(attend_mask, exact, layout, gradient=torch.ones(1, layout.tokens, 1, 8).double())
    assert expected[2][0, 0].min() > 300
    torch.testing.assert_close(gradients[2][0, 0].double(), expected[2][0, 0], rtol=2**-7, atol=0)


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
    chosen, notice = select_backend(requested, torch.device("cpu"), torch.float32, softcap, 64)
    assert chosen == backend
    assert (requested in notice) == replaced
    assert math.isclose(len(notice), 0) != replaced


@pytest.mark.parametrize(
    ("requested", "softcap", "width", "capability", "backend"),
    [
        ("auto", None, 128, (8, 0), "varlen"),
        ("auto", None, 256, (9, 0), "varlen"),
        ("auto", 50.0, 128, (9, 0), "flex"),
        ("auto", None, 128, (7, 5), "flex"),
        ("auto", None, 512, (9, 0), "flex"),
        ("auto", None, 20, (9, 0), "flex"),
        ("auto", None, 12, (9, 0), "mask"),
        ("flex_attention", None, 128, (9, 0), "flex"),
        ("sdpa", None, 128, (9, 0), "mask"),
    ],
)
def test_backends_of_a_gpu(monkeypatch, requested, softcap, width, capability, backend):
    """Flash kernels take multiples of 8 up to 256, on Ampere and later; Triton's take 16 and more."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    chosen, notice = select_backend(requested, torch.device("cuda", 0), torch.bfloat16, softcap, width)
    assert (chosen, notice) == (backend, "")
