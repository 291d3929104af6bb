"""What tests run on ranks, in processes of their own."""

from __future__ import annotations

import numpy as np
from deepspeed.utils import safe_get_full_grad

from fim_core.training.distributed import join_ranks
from fim_core.training.engine import accumulate, fit, next_steps
from fim_core.training.job import Job
from fim_core.training.setup import setup


def first_gradient(job: Job) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and full gradient of a run's first optimizer step, as a rank has them ready for the optimizer."""
    run = setup(job, join_ranks())
    step = next(next_steps(run))
    total, _ = accumulate(run, step)
    gradients = {}
    for name, parameter in run.engine.module.model.named_parameters():
        gradient = safe_get_full_grad(parameter) if run.engine.zero_optimization() else parameter.grad
        gradients[name] = gradient.float().numpy()
    return total / step.denominator, gradients


def whole_run(job: Job) -> dict[str, object]:
    """Train to the end; returns the result's fields."""
    return vars(fit(setup(job, join_ranks())))


def error_of_run(job: Job) -> tuple[str, str]:
    """Train; returns the class and the words of the error that it ends with."""
    try:
        whole_run(job)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""
