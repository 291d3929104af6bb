"""The learning rate over optimizer steps."""

from __future__ import annotations

import torch
from transformers import get_scheduler

from fim_core.config.training import SchedulerConfig


def warmup_steps(config: SchedulerConfig, total_steps: int) -> int:
    """Optimizer steps of the warm-up: `warmup_steps`, or `warmup_ratio` of all steps, rounded."""
    return config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * total_steps)


def build_scheduler(
    config: SchedulerConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of transformers with this name, to be stepped once an optimizer step.

    Args:
        total_steps: optimizer steps of the whole run, at whose end linear and cosine reach their floor.
    """
    return get_scheduler(
        config.name,
        optimizer,
        num_warmup_steps=warmup_steps(config, total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=config.scheduler_specific_kwargs.model_dump(exclude_none=True) or None,
    )
