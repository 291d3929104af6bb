"""Learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from fim_core.config.training import SchedulerConfig
from fim_core.errors import FimError


def warmup_steps(config: SchedulerConfig, total_steps: int) -> int:
    """Optimizer steps of the warm-up: `warmup_steps`, or `warmup_ratio` of all steps, rounded."""
    return config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * total_steps)


def build_scheduler(config: SchedulerConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """The schedule of transformers with this name, to be advanced once per optimizer step.

    Most schedules of transformers begin a warm-up with a step at rate 0, which computes gradients and changes nothing.
    Such a warm-up starts one step further along here: W steps take 1/(W+1) to W/(W+1) of the peak instead of 0 to
    (W-1)/W, and the steps after the warm-up take the same rates.

    Args:
        total_steps: optimizer steps of the whole run; linear and cosine reach their minimum one step after the last.

    Raises:
        FimError: warm-up and decay of warmup_stable_decay are longer than the run.
    """
    arguments = config.scheduler_specific_kwargs.model_dump(exclude_none=True)
    if config.name == "cosine_with_restarts" and "num_cycles" in arguments:
        arguments["num_cycles"] = int(arguments["num_cycles"])
    warmup, decay = warmup_steps(config, total_steps), arguments.get("num_decay_steps", 0)
    if config.name == "inverse_sqrt" and warmup:
        arguments.setdefault("timescale", warmup)
    if decay and warmup + decay > total_steps:
        raise FimError(
            f"scheduler: num_decay_steps {decay} and the warm-up of {warmup} steps are more than the run's {total_steps}. "
            "Lower them, or train for more steps."
        )
    peak = optimizer.defaults["lr"]
    share = _share_of_peak(config.name, peak, warmup, total_steps, arguments)
    if share(0) > 0:
        return LambdaLR(optimizer, lambda step: share(step))
    later = _share_of_peak(config.name, peak, warmup + 1, total_steps + 1, arguments)
    return LambdaLR(optimizer, lambda step: later(step + 1))


def _share_of_peak(
    name: str, peak: float, warmup: int, steps: int, arguments: dict[str, Any]
) -> Callable[[int], float]:
    """The function by which transformers scales the peak, from the number of the step, starting at 0."""
    # transformers changes the learning rate of the optimizer that it is given, so this is not the real one.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        scheduler_specific_kwargs=arguments or None,
    )
    return schedule.lr_lambdas[0]
