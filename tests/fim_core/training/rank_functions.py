"""Functions that tests run on ranks, in separate processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import load_file

import fim_core.training.model as model_module
from fim_core.modeling.loss import batch_loss
from fim_core.modeling.tiling import enable_tiled_compute
from fim_core.packing import collate
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.training.deepspeed_config import deepspeed_config
from fim_core.training.distributed import Ranks, join_ranks
from fim_core.training.export import build_for
from fim_core.training.job import Job
from fim_core.training.loop import accumulate, fit, next_steps, train_step
from fim_core.training.run import prepare_run


def first_gradient(job: Job) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and full gradient of a run's first optimizer step, as a rank has them ready for the optimizer."""
    return gradient_of(job, join_ranks())


def first_gradients(jobs: list[Job]) -> list[tuple[float, dict[str, np.ndarray]]]:
    """As `first_gradient`, for several runs one after the other."""
    ranks = join_ranks()
    return [gradient_of(job, ranks) for job in jobs]


def logged_lines(job: Job) -> list[str]:
    """What a run logs at level INFO about its steps."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    events = logging.getLogger("fim_core.training.events")
    events.addHandler(handler)
    events.setLevel(logging.INFO)
    fit(prepare_run(job, join_ranks()))
    return [record.getMessage() for record in records]


def gradient_of(job: Job, ranks: Ranks) -> tuple[float, dict[str, np.ndarray]]:
    """As `first_gradient`, on ranks that have joined already."""
    run = prepare_run(job, ranks)
    step = next(next_steps(run))
    total = accumulate(run, step)
    gradients = {}
    for name, parameter in run.engine.module.model.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = safe_get_full_grad(parameter) if run.engine.zero_optimization() else parameter.grad
        gradients[name] = gradient.float().numpy()
    run.engine.destroy()
    return total / step.denominator, gradients


def sums_of_gradients(job: Job) -> int:
    """How often a run's first optimizer step sums gradients over ranks outside of ZeRO."""
    run, calls = prepare_run(job, join_ranks()), 0
    reduce = run.engine.allreduce_bucket

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return reduce(*arguments, **options)

    run.engine.allreduce_bucket = counted
    accumulate(run, next(next_steps(run)))
    return calls


def stage_of_run(job: Job) -> int:
    """The ZeRO stage that a run starts with."""
    stage: int = prepare_run(job, join_ranks()).engine.zero_optimization_stage()
    return stage


def differences(jobs: list[Job], reference: Path) -> list[tuple[float, float, float]]:
    """How far each job's first gradient is from a stored one.

    Args:
        reference: safetensors file; `token` and `sample` are losses, `token/NAME` and `sample/NAME` their gradients.

    Returns:
        For each job relative differences: of the loss; of the whole gradient; of the parameter that is furthest off.
    """
    ranks, wanted, found = join_ranks(), load_file(reference), []
    for job in jobs:
        reduction = "sample" if job.experiment.data.sample_weighted_loss else "token"
        loss, gradients = gradient_of(job, ranks)
        expected = {name: wanted[f"{reduction}/{name}"] for name in gradients}
        errors = {name: (torch.from_numpy(grad).double() - expected[name]).norm() for name, grad in gradients.items()}
        norms = {name: grad.norm() for name, grad in expected.items()}
        whole = torch.stack(list(errors.values())).norm() / torch.stack(list(norms.values())).norm()
        worst = max(float(errors[name] / norms[name]) for name in gradients)
        found.append((abs(loss / float(wanted[reduction]) - 1), float(whole), worst))
    return found


def whole_run(job: Job) -> dict[str, object]:
    """Train to the end; returns the result's fields."""
    return vars(fit(prepare_run(job, join_ranks())))


def whole_runs(jobs: list[Job]) -> None:
    """Train several runs to the end, one after the other."""
    ranks = join_ranks()
    for job in jobs:
        run = prepare_run(job, ranks)
        fit(run)
        run.engine.destroy()


def norm_before_and_after_clipping(job: Job) -> tuple[float, float]:
    """Train one step; returns the norm of its gradient, and of the gradient that Adam was given."""
    run = prepare_run(job, join_ranks())
    beta = job.experiment.optimizer.betas[0]
    outcome = train_step(run, next(next_steps(run)))
    adam = getattr(run.engine.optimizer, "optimizer", run.engine.optimizer)  # ZeRO wraps it
    moments = [state["exp_avg"] for state in adam.state.values()]
    return outcome.grad_norm, float(torch.nn.utils.get_total_norm(moments)) / (1 - beta)


def error_of_run(job: Job) -> tuple[str, str]:
    """Train; returns the class and the message of the error that it raises."""
    try:
        whole_run(job)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def shares_as_loaded(job: Job) -> dict[str, float]:
    """What part of each parameter this rank holds when the model is loaded and DeepSpeed has not begun; 1 for whole."""
    ranks, tokenizer = join_ranks(), load_tokenizer(job.tokenizer)
    config = deepspeed_config(job.experiment, world_size=ranks.world_size, dtype=torch.float32)
    model = build_for(job, tokenizer, ranks.device, partition=config)
    return {
        name: parameter.ds_tensor.numel() / parameter.ds_numel if hasattr(parameter, "ds_id") else 1.0
        for name, parameter in model.named_parameters()
    }


def gradient_of_pack(job: Job, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of the loss of one row of a pack at the embeddings of all tokens of this rank's part of the pack.

    Returns:
        The gradient, [tokens of the part, hidden], and which of these tokens belong to the row.
    """
    run = prepare_run(job, join_ranks())
    model = run.engine.module.model
    (pack,) = next(next_steps(run)).micro_batches
    batch, group = collate([pack], run.train_rows), run.ranks.sequence_group
    chosen = batch.target_rows == row
    kept = {"predict_positions": batch.predict_positions[chosen], "targets": batch.targets[chosen]}
    part = replace(batch, target_rows=batch.target_rows[chosen], **kept).part(group.rank, group.size)
    embedded = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: embedded.append(output.requires_grad_()))
    total = batch_loss(model, part, sequence_group=group).total
    (gradient,) = torch.autograd.grad(total, embedded)
    of_token = np.append(batch.layout.segment_of, np.full(-batch.distinct_tokens % group.size, -1))
    mine = slice(group.rank * gradient.shape[1], (group.rank + 1) * gradient.shape[1])
    return gradient[0].numpy(), of_token[mine] == row


def in_tiles(function: Callable[[Job, Ranks], Any], jobs: list[Job]) -> list[Any]:
    """Call a function for each job, with tiles of 8 tokens, so that short rows have several."""
    tiled: list[Any] = []

    def enable(model: Any) -> None:
        tiled.append(model)
        enable_tiled_compute(model, tile_tokens=8)

    model_module.enable_tiled_compute = enable  # type: ignore[assignment]
    ranks = join_ranks()
    results = [function(job, ranks) for job in jobs]
    assert len(tiled) == sum(job.experiment.tiled_mlp_compute for job in jobs)
    return results


def losses_of_run(job: Job, ranks: Ranks) -> tuple[float | None, float | None]:
    """Train to the end; returns the held-out loss before and after."""
    run = prepare_run(job, ranks)
    result = fit(run)
    run.engine.destroy()
    return result.loss_before, result.loss_after
