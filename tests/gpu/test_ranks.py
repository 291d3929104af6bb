"""Two GPUs: the losses of one, with each ZeRO stage and with the tokens of a pack divided among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_rehearsal import REHEARSAL, TRAINED_MODEL, sized
from gpu_report import Report
from gpu_runs import TOLERANCE, Outcome, cells, train

pytestmark = pytest.mark.gpu

CASES: list[dict[str, Any]] = [
    {"stage": 1},
    {"stage": 2},
    {"stage": 3},
    {"stage": 1, "sequence_parallel_size": 2},
    {"stage": 3, "sequence_parallel_size": 2},
]
OPTIONS: dict[str, Any] = {"dtype": "bf16", "steps": sized(10, 2), "model": TRAINED_MODEL}


@pytest.fixture(scope="module")
def one_rank(gpu: torch.device, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run on one GPU."""
    if torch.cuda.device_count() < 2 and not REHEARSAL:
        pytest.skip("one GPU; NCCL needs two")
    return train(rows, rows, tmp_path_factory.mktemp("one") / "work", device=gpu.type, **OPTIONS)


@pytest.mark.parametrize("case", sized(CASES, CASES[-2:]), ids=str)
def test_two_ranks(
    case: dict[str, Any], gpu: torch.device, rows: Path, one_rank: Outcome, report: Report, tmp_path: Path
) -> None:
    found = train(rows, rows, tmp_path / "work", device=gpu.type, ranks=2, **OPTIONS, **case)
    name = ", ".join(f"{option} {value}" for option, value in case.items())
    report.add("Two GPUs (NCCL) against one, bf16", **cells(name, found, one_rank))
    assert found.difference(one_rank) <= TOLERANCE
