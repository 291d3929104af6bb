"""`fim estimate` against the peak memory of a GPU, and the refusal of a run that cannot fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_rehearsal import REHEARSAL, TRAINED_MODEL, sized
from gpu_report import Report
from gpu_runs import experiment_of, train

from fim_core.errors import FimError
from fim_core.tokenization import load_rows
from fim_core.training.estimate.estimate import Estimator
from fim_core.training.estimate.machine import Machine

pytestmark = pytest.mark.gpu

TITLE = "Peak memory of a rank, MiB"
DTYPE = sized("bf16", "fp32")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
def test_the_estimate_is_within_15_percent(
    checkpointing: bool, gpu: torch.device, rows: Path, long_rows: Path, tmp_path: Path, report: Report
) -> None:
    """Without what the estimate assumes for the context and for fragmentation, which torch does not count."""
    options = {"pack_length": 131_072, "batch_rows": 3, "model": TRAINED_MODEL}
    experiment = experiment_of(dtype=DTYPE, steps=3, activation_checkpointing=checkpointing, **options)
    machine = Machine.this_cpu(1) if REHEARSAL else Machine.of_device(gpu)
    estimator = Estimator(experiment, machine, 1, rows / "prompts" / "tokenizer")
    workload = estimator.workload_of(load_rows(long_rows / "tokens", "train"))
    memory = estimator.estimate(workload, utilization=0.4).memory
    estimate = memory.total - memory.parts["overhead"]
    measured = train(
        long_rows,
        rows,
        tmp_path,
        device=gpu.type,
        dtype=DTYPE,
        steps=3,
        activation_checkpointing=checkpointing,
        **options,
    ).memory
    difference = estimate / measured - 1
    report.add(
        TITLE,
        run="checkpointing" if checkpointing else "kept",
        estimate=f"{estimate / 2**20:,.0f}",
        measured=f"{measured / 2**20:,.0f}",
        difference=f"{difference:+.0%}",
    )
    if not REHEARSAL:  # on a CPU the process itself counts too
        assert abs(difference) <= 0.15


def test_a_run_that_cannot_fit_stops_before_it_starts(gpu: torch.device, rows: Path, tmp_path: Path) -> None:
    if REHEARSAL:
        pytest.skip("runs on a CPU are not refused")
    free, _ = torch.cuda.mem_get_info(gpu)
    layer = 12 * 8192**2
    layers = int(free / (4 * layer)) + 1
    model = TRAINED_MODEL | {
        "hidden_size": 8192,
        "intermediate_size": 32_768,
        "num_attention_heads": 64,
        "num_hidden_layers": layers,
        "head_dim": 128,
    }
    with pytest.raises(FimError, match=r"GiB on the rank, and .* GiB are free on"):
        train(rows, rows, tmp_path, device=gpu.type, dtype="bf16", model=model)
