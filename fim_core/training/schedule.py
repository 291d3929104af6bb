"""The learning rate over optimizer steps."""

from __future__ import annotations

import torch
from transformers import get_scheduler

from fim_core.config.training import SchedulerConfig
from fim_core.errors import FimError


def warmup_steps(config: SchedulerConfig, total_steps: int) -> int:
    """Optimizer steps of the warm-up: `warmup_steps`, or `warmup_ratio` of all steps, rounded."""
    return config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * total_steps)


def build_scheduler(
    config: SchedulerConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of transformers with this name, to be stepped once an optimizer step.

    Args:
        total_steps: optimizer steps of the whole run, at whose end linear and cosine reach their floor.

    Raises:
        FimError: warm-up and decay of warmup_stable_decay are longer than the run.
    """
    arguments = config.scheduler_specific_kwargs.model_dump(exclude_none=True)
    if config.name == "cosine_with_restarts" and "num_cycles" in arguments:
        arguments["num_cycles"] = int(arguments["num_cycles"])
    warmup, decay = warmup_steps(config, total_steps), arguments.get("num_decay_steps", 0)
    if decay and warmup + decay > total_steps:
        raise FimError(
            f"scheduler: num_decay_steps {decay} and the warm-up of {warmup} steps are more than the run's {total_steps}. "
            "Lower them, or train longer."
        )
    return get_scheduler(
        config.name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        scheduler_specific_kwargs=arguments or None,
    )
