"""The learning rate over optimizer steps."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from fim_core.config.training import SchedulerConfig
from fim_core.errors import FimError


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
    # transformers puts its rates into the optimizer that it gets, and reads the peak from there.
    scratch = torch.optim.SGD([torch.zeros(1)], lr=optimizer.defaults["lr"])
    shape = get_scheduler(
        config.name,
        scratch,
        num_warmup_steps=warmup + 1,
        num_training_steps=total_steps + 1,
        scheduler_specific_kwargs=arguments or None,
    ).lr_lambdas[0]
    return LambdaLR(optimizer, lambda step: shape(step + 1))
