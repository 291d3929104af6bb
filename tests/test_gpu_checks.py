"""The checks of `make test-gpu` on a CPU, at small sizes: that they pass on what is right and fail on what is wrong."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from attention_reference import operands, reference, run, varlen_on_cpu
from gpu_attention import (
    FACTOR,
    ROUNDING,
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
from gpu_report import Report
from gpu_runs import TOLERANCE, Outcome, cells, make_rows, train

from fim_core.modeling.attention import attend_mask, attend_segments, attend_varlen
from fim_core.modeling.pack_masks import pack_block_mask

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def varlen(*args, **options):
    return attend_varlen(*args, kernel=varlen_on_cpu, **options)


@pytest.mark.parametrize("name", layouts(3))
@pytest.mark.parametrize("options", [{"window": None}, {"window": 5}, {"window": 5, "softcap": 0.8}])
def test_the_reference_equals_the_definition(name: str, options: dict) -> None:
    layout = layouts(3)[name]
    leaves = operands(layout, 4, 2)
    expected, expected_gradients = run(reference, leaves, layout, **options)
    found, gradients = run(dense(definition(layout, options["window"])), leaves, layout, **options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [Shape(4, 2, 16), Shape(7, 1, 16, window=13), Shape(4, 4, 16, softcap=20.0)], ids=str)
def test_backends_of_a_cpu_pass(shape: Shape) -> None:
    backends = {"mask": attend_mask}
    if shape.softcap is None:
        backends |= {"varlen": varlen, "segments": attend_segments}
    for layout in layouts(17).values():
        errors = relative_errors(backends, layout, shape, CPU, torch.bfloat16)
        assert set(errors) == {"SDPA", *backends}
        assert max(errors["SDPA"].values()) < 4 * ROUNDING
        assert too_large(errors) == []


def test_a_wrong_backend_fails() -> None:
    layout, shape = layouts(17)["tree"], Shape(4, 2, 16, window=13)

    def without_window(*args, window, **options):
        return attend_mask(*args, window=None, **options)

    def wrong_value_gradient(query, key, value, *args, **options):
        return attend_mask(query, key, value * 1.03 - 0.03 * value.detach(), *args, **options)

    assert len(too_large(relative_errors({"a": without_window}, layout, shape, CPU, torch.bfloat16))) == 4
    wrong = too_large(relative_errors({"b": wrong_value_gradient}, layout, shape, CPU, torch.bfloat16))
    assert [text.split(" is ")[0] for text in wrong] == ["b: error of dv"]
    nan = {"SDPA": dict.fromkeys(("output", "dq", "dk", "dv"), 0.1)}
    assert too_large(nan | {"c": dict.fromkeys(nan["SDPA"], float("nan"))})
    assert FACTOR < 3


def test_leaks_are_counted() -> None:
    layout, shape = layouts(5)["tree"], Shape(2, 1, 8)

    def leaking(query, key, value, *args, **options):
        return attend_mask(query, key, value + 0.001 * value.mean(dim=2, keepdim=True), *args, **options)

    for attend in (attend_mask, varlen, attend_segments):
        assert leaks(attend, layout, shape, CPU, torch.bfloat16) == 0
    assert leaks(leaking, layout, shape, CPU, torch.bfloat16) > 0


def test_sampled_outputs_and_times() -> None:
    layout = long_layout(512)
    assert layout.tokens == 512
    error, found = sampled_error(varlen, layout, Shape(4, 2, 16), CPU, torch.bfloat16, samples=8)
    assert error < 2**-7
    assert [tensor.shape[2] for tensor in found] == [4, 4, 2, 2]
    assert sampled_error(attend_mask, layout, Shape(4, 2, 16, window=9), CPU, torch.bfloat16, samples=8)[0] < 2**-7
    assert milliseconds(attend_mask, layout, Shape(2, 1, 8), CPU, torch.bfloat16) > 0


def test_flex_attention_of_a_long_pack_has_no_dense_mask() -> None:
    """Its blocks take milliseconds; a dense mask of 131,072 tokens would take 16 GiB."""
    layout = long_layout(131_072)
    block_mask = pack_block_mask(layout, None, CPU)
    assert block_mask.kv_indices.shape == (1, 1, 1024, 1024)


def test_report(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu" / "report.md")
    report.add("Losses", run="flat", first_loss="7.1")
    report.add("Losses", run="none", first_loss="7.2")
    written = (tmp_path / "gpu" / "report.md").read_text()
    assert written == report.text()
    assert "### Losses\n\n| run | first loss |\n| --- | ---: |\n| flat | 7.1 |\n| none | 7.2 |\n" in written
    assert f"torch {torch.__version__}" in written
    with pytest.raises(ValueError, match="columns"):
        report.add("Losses", run="tree")


def test_difference_of_losses() -> None:
    first, other, shorter = (Outcome(losses, (None, None), 1.0, 1, []) for losses in ([2.0, 1.0], [2.1, 1.0], [2.0]))
    assert first.difference(other) == pytest.approx(0.1 / 2.1)
    assert shorter.difference(first) == float("inf")
    assert cells("flat", first, other)["largest_difference"] == "4.76%"


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "gpu").glob("test_*.py")), ids=lambda path: path.stem)
def test_every_test_on_a_gpu_is_marked(path: Path) -> None:
    assert module_of(path).pytestmark.name == "gpu"


def run_gpu_tests(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run tests/gpu as `make test-gpu` does, without a GPU."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-m", "gpu", "-rs", "tests/gpu"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    given = inherited | {"CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True)


@pytest.mark.slow
def test_without_a_gpu_all_are_skipped_with_the_reason(tmp_path: Path) -> None:
    done = run_gpu_tests(FIM_ARTIFACTS=str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "no CUDA device: torch" in done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rehearsal_of_all_tests_on_a_cpu(tmp_path: Path) -> None:
    """Every test runs at small sizes with two ranks of gloo, and the report has all tables."""
    done = run_gpu_tests(FIM_GPU_REHEARSAL="1", FIM_ARTIFACTS=str(tmp_path))
    assert done.returncode == 0, done.stdout
    report = (tmp_path / "gpu" / "report.md").read_text()
    assert report in done.stdout
    titles = [line for line in report.splitlines() if line.startswith("###")]
    assert len(titles) == 7
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    reasons = ("softcap", "trl", "runs on a CPU are not refused")
    assert all(any(reason in line for reason in reasons) for line in skipped)


@pytest.mark.slow
def test_losses_in_bf16_are_within_the_tolerance(tmp_path: Path) -> None:
    """The comparison of a GPU with a CPU, as bf16 on a CPU with float32, for as many steps."""
    rows = make_rows(tmp_path / "rows", rows=200, vocabulary=600)
    expected = train(rows, rows, tmp_path / "fp32", device="cpu", dtype="fp32", model=SMALL)
    found = train(rows, rows, tmp_path / "bf16", device="cpu", dtype="bf16", packing="flat", model=SMALL)
    assert len(found.losses) == 20
    assert found.losses != expected.losses
    assert found.difference(expected) <= TOLERANCE / 2
    assert found.losses[-1] < found.losses[0]
