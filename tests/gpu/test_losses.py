"""Training in bf16 on a GPU, through the launcher, has the losses of float32 on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_rehearsal import TRAINED_MODEL, sized
from gpu_report import Report
from gpu_runs import TOLERANCE, Outcome, cells, train

pytestmark = pytest.mark.gpu

TITLE = "Losses in bf16 on one GPU against float32 on a CPU"
OPTIONS: dict[str, Any] = {"steps": sized(20, 3), "model": TRAINED_MODEL}
SMALL = TRAINED_MODEL | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
LONG: dict[str, Any] = {"packing": "none", "steps": sized(3, 1), "batch_rows": 1, "pack_length": 16_384, "model": SMALL}


@pytest.fixture(scope="module")
def on_cpu(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """20 steps on the CPU; all packings have these losses, as other tests prove."""
    return train(rows, rows, tmp_path_factory.mktemp("cpu") / "work", device="cpu", dtype="fp32", **OPTIONS)


CASES = [("prefix_tree", "auto"), ("prefix_tree", "flex_attention"), ("flat", "auto"), ("none", "auto")]


@pytest.mark.parametrize(("packing", "attention"), sized(CASES, CASES[1:3]))
def test_twenty_steps(
    packing: str, attention: str, gpu: torch.device, rows: Path, on_cpu: Outcome, report: Report, tmp_path: Path
) -> None:
    options = OPTIONS | {"packing": packing, "attention": attention}
    found = train(rows, rows, tmp_path / "work", device=gpu.type, dtype="bf16", **options)
    report.add(TITLE, **cells(f"{packing}, {attention}", found, on_cpu))
    assert not [notice for notice in found.notices if "is used instead" in notice and attention == "auto"]
    assert found.difference(on_cpu) <= TOLERANCE
    assert found.losses[-1] < found.losses[0]


def test_long_rows(
    gpu: torch.device,
    rows: Path,
    long_rows: Path,
    report: Report,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Three steps of one row of 16,384 tokens."""
    expected = train(long_rows, rows, tmp_path_factory.mktemp("long-cpu") / "work", device="cpu", dtype="fp32", **LONG)
    found = train(long_rows, rows, tmp_path / "work", device=gpu.type, dtype="bf16", **LONG)
    report.add(TITLE, **cells(sized("rows of 16,384 tokens", "rows of 600 tokens"), found, expected))
    assert found.difference(expected) <= TOLERANCE
