"""Learning rates against the formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fim_core.config.training import SchedulerConfig
from fim_core.training.schedule import build_scheduler

PEAK, WARMUP, TOTAL = 3e-4, 5, 40


def rates(**options: Any) -> list[float]:
    """The learning rate of each optimizer step of a run."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = build_scheduler(SchedulerConfig(**options), optimizer, TOTAL)
    seen = []
    for _ in range(TOTAL):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def warm(step: int, after: float) -> float:
    return PEAK * step / WARMUP if step < WARMUP else after


def decay(step: int) -> float:
    """Share of the way from the end of the warm-up to the end of the run."""
    return (step - WARMUP) / (TOTAL - WARMUP)


def half_cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * decay(step)))


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({"name": "constant"}, lambda step: PEAK),
        ({"name": "constant_with_warmup", "warmup_steps": WARMUP}, lambda step: warm(step, PEAK)),
        ({"name": "linear", "warmup_steps": WARMUP}, lambda step: warm(step, PEAK * (1 - decay(step)))),
        ({"name": "cosine", "warmup_ratio": WARMUP / TOTAL}, lambda step: warm(step, PEAK * half_cosine(step))),
        (
            {
                "name": "cosine_with_min_lr",
                "num_warmup_steps": WARMUP,
                "scheduler_specific_kwargs": {"min_lr_rate": 0.1},
            },
            lambda step: warm(step, PEAK * (0.1 + 0.9 * half_cosine(step))),
        ),
        (
            {"name": "cosine_with_min_lr", "warmup_steps": WARMUP, "scheduler_specific_kwargs": {"min_lr": PEAK / 5}},
            lambda step: warm(step, PEAK * (0.2 + 0.8 * half_cosine(step))),
        ),
    ],
)
def test_rates_follow_the_formula(options: dict[str, Any], formula: Any) -> None:
    assert rates(**options) == pytest.approx([formula(step) for step in range(TOTAL)], rel=1e-9, abs=1e-15)
