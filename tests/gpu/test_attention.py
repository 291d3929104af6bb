"""The attention backends for GPUs in bf16, against float64 on the same rounded operands.

A result may be off by twice the error of torch's SDPA, or by one rounding to bf16; see gpu_attention.
"""

from __future__ import annotations

import pytest
import torch
from attention_reference import chain, operands, reference, run
from gpu_attention import (
    NAMES,
    Shape,
    definition,
    dense,
    layouts,
    leaks,
    long_layout,
    milliseconds,
    relative_errors,
    sampled_error,
    too_large,
)
from gpu_rehearsal import BACKENDS, sized, why_not
from gpu_report import Report

from fim_core.training.utilization import peak_memory

pytestmark = pytest.mark.gpu

SHAPES = [
    Shape(8, 2, 128),
    Shape(8, 2, 128, window=300),
    Shape(7, 1, 64),
    Shape(4, 2, 256, window=77),
    Shape(4, 4, 64, softcap=20.0),
]
SIZE = sized(300, 9)
LONG_PACK = sized(131_072, 512)


def test_float64_on_the_gpu_equals_the_definition(gpu: torch.device) -> None:
    """The reference of the other tests, against attention token by token on the CPU."""
    layout = chain(4)
    leaves = operands(layout, 4, 2)
    for options in ({"window": None}, {"window": 5}, {"window": 5, "softcap": 0.8}):
        expected, expected_gradients = run(reference, leaves, layout, **options)
        moved = [leaf.detach().to(gpu).requires_grad_() for leaf in leaves]
        found, gradients = run(dense(definition(layout, options["window"]).to(gpu)), moved, layout, **options)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(tuple(each.cpu() for each in gradients), expected_gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_and_gradients_are_as_exact_as_sdpa(
    backend: str, shape: Shape, gpu: torch.device, report: Report
) -> None:
    if reason := why_not(backend, gpu, shape.width, shape.softcap):
        pytest.skip(reason)
    wrong = []
    for name, layout in layouts(SIZE).items():
        errors = relative_errors({backend: BACKENDS[backend]}, layout, shape, gpu, torch.bfloat16)
        found, plain = errors[backend], errors["SDPA"]
        pairs = {part: f"{found[part]:.1e} ({plain[part]:.1e})" for part in NAMES}
        report.add(
            "Attention in bf16: error relative to float64 (that of SDPA)",
            backend=backend,
            heads=str(shape),
            pack=f"{name}, {layout.tokens:,}",
            **pairs,
        )
        wrong += [f"{name}: {text}" for text in too_large(errors)]
    assert not wrong


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_leaks_between_rows(backend: str, window: int | None, gpu: torch.device) -> None:
    """Gradients off the path are exactly zero."""
    if reason := why_not(backend, gpu):
        pytest.skip(reason)
    layout = layouts(sized(60, 5))["tree"]
    assert leaks(BACKENDS[backend], layout, Shape(8, 2, 128, window=window), gpu, torch.bfloat16) == 0


def test_a_pack_of_131072_tokens(gpu: torch.device, report: Report) -> None:
    """No backend holds a dense mask: its 16 GiB would be far beyond the bound."""
    layout, shape = long_layout(LONG_PACK), Shape(4, 2, 128)
    results = {}
    for backend in ("varlen", "flex"):
        if why_not(backend, gpu):
            continue
        if gpu.type == "cuda":
            torch.cuda.reset_peak_memory_stats(gpu)
        error, results[backend] = sampled_error(BACKENDS[backend], layout, shape, gpu, torch.bfloat16)
        peak = peak_memory(gpu)
        report.add(
            f"One layer over a pack of {layout.tokens:,} tokens",
            backend=backend,
            error_of_32_outputs=f"{error:.1e}",
            peak_MiB=f"{peak / 2**20:,.0f}",
        )
        assert error <= 2**-7
        assert peak < 6 * 2**30
    assert "flex" in results
    for found, other in zip(results["flex"], results.get("varlen", results["flex"]), strict=True):
        assert float((found.double() - other.double()).norm() / found.double().norm()) <= 2**-6


def test_times_of_a_layer(gpu: torch.device, report: Report) -> None:
    """No bound, only figures."""
    shape = Shape(16, 8, 128)
    for name, layout in layouts(sized(900, 9)).items():
        times = {
            backend: "" if why_not(backend, gpu) else f"{milliseconds(attend, layout, shape, gpu, torch.bfloat16):.2f}"
            for backend, attend in BACKENDS.items()
        }
        report.add(
            f"Milliseconds of a layer forward and backward, {shape}, bf16", pack=f"{name}, {layout.tokens:,}", **times
        )
