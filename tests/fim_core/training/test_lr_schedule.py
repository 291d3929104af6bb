"""Learning-rate schedules, compared with written-out formulas and with transformers."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from transformers import get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from fim_core.config.training import SCHEDULES, SchedulerArgs, SchedulerConfig
from fim_core.errors import FimError
from fim_core.training.lr_schedule import build_scheduler

PEAK, WARMUP, TOTAL = 3e-4, 5, 40


def adam() -> torch.optim.Optimizer:
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def rates(total: int = TOTAL, **options: Any) -> list[float]:
    """The learning rate that each optimizer step of a run takes."""
    optimizer = adam()
    scheduler = build_scheduler(SchedulerConfig(**options), optimizer, total)
    seen = []
    for _ in range(total):
        assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def warm(step: int, after: float) -> float:
    return PEAK * (step + 1) / (WARMUP + 1) if step < WARMUP else after


def decay(step: int) -> float:
    """Share of the way from the end of the warm-up to the end of the run."""
    return (step - WARMUP) / (TOTAL - WARMUP)


def half_cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * decay(step)))


def test_every_schedule_of_the_step_is_known_with_its_arguments() -> None:
    common = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    theirs = {
        kind.value: set(inspect.signature(function).parameters) - common
        for kind, function in TYPE_TO_SCHEDULER_FUNCTION.items()
        if kind.value not in ("reduce_lr_on_plateau", "greedy")
    }
    assert theirs == SCHEDULES
    assert set().union(*SCHEDULES.values()) == set(SchedulerArgs.model_fields)


def test_a_decay_that_is_longer_than_the_run_is_refused() -> None:
    with pytest.raises(FimError, match="num_decay_steps 36 and the warm-up of 5 steps are more than the run's 40"):
        rates(name="warmup_stable_decay", warmup_steps=WARMUP, scheduler_specific_kwargs={"num_decay_steps": 36})


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
        (
            {
                "name": "polynomial",
                "warmup_steps": WARMUP,
                "scheduler_specific_kwargs": {"power": 2.0, "lr_end": PEAK / 10},
            },
            lambda step: warm(step, PEAK / 10 + 0.9 * PEAK * (1 - decay(step)) ** 2),
        ),
        (
            {"name": "inverse_sqrt", "warmup_steps": WARMUP, "scheduler_specific_kwargs": {"timescale": 9}},
            lambda step: warm(step, PEAK / math.sqrt((step + 9 - WARMUP) / 9)),
        ),
        (
            {"name": "cosine_with_restarts", "warmup_steps": WARMUP, "scheduler_specific_kwargs": {"num_cycles": 3}},
            lambda step: warm(step, PEAK * 0.5 * (1 + math.cos(math.pi * (3 * decay(step) % 1)))),
        ),
        (
            {
                "name": "cosine_warmup_with_min_lr",
                "warmup_steps": WARMUP,
                "scheduler_specific_kwargs": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.5},
            },
            lambda step: (
                PEAK * (0.5 + 0.5 * step / (WARMUP - 1))
                if step < WARMUP
                else PEAK * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP + 1) / (TOTAL - WARMUP))))
            ),
        ),
        (
            {
                "name": "warmup_stable_decay",
                "warmup_steps": WARMUP,
                "scheduler_specific_kwargs": {"num_decay_steps": 10, "decay_type": "linear", "min_lr_ratio": 0.2},
            },
            lambda step: PEAK * (0.2 + 0.8 * min(step / WARMUP, 1, (TOTAL - step) / 10)),
        ),
    ],
)
def test_rates_follow_the_formula(options: dict[str, Any], formula: Any) -> None:
    assert rates(**options) == pytest.approx([formula(step) for step in range(TOTAL)], rel=1e-9, abs=1e-15)


NEEDED: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 10},
}


@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_after_the_warm_up_are_those_of_transformers(name: str, warmup: int) -> None:
    if name == "constant" and warmup:
        return
    arguments = NEEDED.get(name, {})
    schedule = get_scheduler(
        name,
        adam(),
        num_warmup_steps=warmup,
        num_training_steps=TOTAL,
        scheduler_specific_kwargs=dict(arguments) or None,
    )
    theirs = [PEAK * schedule.lr_lambdas[0](step) for step in range(TOTAL)]
    ours = rates(name=name, warmup_steps=warmup, scheduler_specific_kwargs=arguments)
    assert ours[warmup:] == pytest.approx(theirs[warmup:], rel=1e-9)
    assert all(0 < rate <= PEAK * (1 + 1e-9) for rate in ours)
    assert ours[:warmup] == sorted(ours[:warmup])


@pytest.mark.parametrize(
    ("name", "total", "table"),
    [
        ("linear", 1, [1]),
        ("linear", 4, [1, 3 / 4, 1 / 2, 1 / 4]),
        ("cosine", 2, [1, 1 / 2]),
        # 5% of 20 steps is one step of warm-up, at half the peak.
        ("linear", 20, [1 / 2, *(1 - step / 19 for step in range(19))]),
        ("constant", 20, [1] * 20),
        ("constant_with_warmup", 40, [1 / 3, 2 / 3, *[1] * 38]),
    ],
)
def test_default_warm_up(name: str, total: int, table: list[float]) -> None:
    assert rates(total, name=name) == pytest.approx([PEAK * share for share in table])


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("warmup", [0, 1, 2, 100])
def test_no_step_is_wasted_at_rate_zero(name: str, total: int, warmup: int) -> None:
    assert min(rates(total, name=name, warmup_steps=warmup)) > 0
