"""The learning rate over optimizer steps."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from fim_core.config.training import SchedulerConfig


def warmup_steps(config: SchedulerConfig, total_steps: int) -> int:
    """Optimizer steps below the peak: `warmup_steps`, or `warmup_ratio` of all steps, rounded."""
    return config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * total_steps)


def build_scheduler(config: SchedulerConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """The schedule of transformers with this name, to be stepped once an optimizer step.

    The schedules of transformers give step 0 of a warm-up the rate 0: it computes gradients and changes nothing. Here a
    run starts one step into a schedule that is one step longer, so that W steps of warm-up take 1/(W+1) to W/(W+1) of
    the peak, and the steps after them what they would have taken.

    Args:
        total_steps: optimizer steps of the whole run; linear and cosine would reach their floor one step after the last.
    """
    # transformers puts its rates into the optimizer that it gets, and reads the peak from there.
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=optimizer.defaults["lr"])
    shape = get_scheduler(
        config.name,
        stand_in,
        num_warmup_steps=warmup_steps(config, total_steps) + 1,
        num_training_steps=total_steps + 1,
        scheduler_specific_kwargs=config.scheduler_specific_kwargs.model_dump(exclude_none=True) or None,
    ).lr_lambdas[0]
    return LambdaLR(optimizer, lambda step: shape(step + 1))
