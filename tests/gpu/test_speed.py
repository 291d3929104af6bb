"""Tokens a second and peak memory of a step, for our packings and TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_rehearsal import sized
from gpu_report import Report

pytestmark = pytest.mark.gpu

TITLE = "Training 137 million parameters in bf16 on one GPU (benchmarks.train_gpu)"
CASE = sized("full", "tiny")
STEPS = sized(4, 2)
PACK = sized(8192, 2048)


@pytest.fixture(scope="module")
def sample(gpu: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the demo, in whole packs."""
    del gpu
    # Imports transformers' Trainer, which takes seconds, and the default suite collects this file as well.
    from benchmarks.train_gpu import prepare

    sizes = {"rows": sized(128, 8), "demo_rows": sized(3000, 200)}
    return prepare(tmp_path_factory.mktemp("speed"), max_length=PACK, **sizes)


def test_our_packings(gpu: torch.device, sample: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses; shared prefixes are worth more than they cost."""
    from benchmarks.train_gpu import cells, measure_apart

    monkeypatch.setenv("DS_ACCELERATOR", gpu.type)
    found = {}
    for packing in ("prefix_tree", "flat", "none"):
        found[packing] = measure_apart(CASE, f"ours, {packing}", sample, STEPS, PACK)
        report.add(TITLE, **cells(f"ours, {packing}", found[packing], sample))
    for other in ("flat", "none"):
        assert found[other]["losses"] == pytest.approx(found["prefix_tree"]["losses"], rel=0.02)
        if gpu.type == "cuda":
            assert min(found[other]["seconds"]) > min(found["prefix_tree"]["seconds"])


@pytest.mark.parametrize("number", range(3))
def test_trl(number: int, gpu: torch.device, sample: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bound, only figures."""
    pytest.importorskip("trl", reason="trl is not installed (pip install -c constraints.txt -e '.[bench]')")
    from benchmarks.train_gpu import cells, measure_apart, methods

    monkeypatch.setenv("DS_ACCELERATOR", gpu.type)
    name = [method for method in methods() if method.startswith("TRL")][number]
    try:
        result = measure_apart(CASE, name, sample, STEPS, PACK)
    except RuntimeError as error:
        pytest.skip(str(error)[:1500])
    report.add(TITLE, **cells(name, result, sample))
