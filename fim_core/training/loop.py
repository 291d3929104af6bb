"""Training loop on DeepSpeed, with one exact mean loss over each optimizer step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace

import numpy as np
import torch
from deepspeed import DeepSpeedEngine

from fim_core.config.training import CheckpointConfig
from fim_core.errors import FimError
from fim_core.modeling.loss import LossSums
from fim_core.packing import Pack, PackedBatch, Rows, collate
from fim_core.training.checkpoint import save_state
from fim_core.training.events import log_eval, log_step, open_log
from fim_core.training.export import export_model, export_step
from fim_core.training.job import TrainResult
from fim_core.training.progress import Outcome, Progress, advance
from fim_core.training.run import EVAL_PLAN, Run
from fim_core.training.step_exports import StepExports
from fim_core.training.steps import Step, distribute, row_weights, steps
from fim_core.training.trackers import EventLog

logger = logging.getLogger(__name__)

CURE = (
    "Check these rows; if they are valid, lower the learning rate or deepspeed.gradient_clipping, "
    "or use model.dtype bf16 or fp32."
)


def fit(run: Run) -> TrainResult:
    """Train from the run's current position to its end, and export the model.

    Raises:
        FimError: a loss or a gradient is not finite; the message names the rows.
    """
    log = open_log(run)
    progress = run.start
    if progress.position.step == 0:
        before = evaluate_loss(run)
        progress = replace(progress, loss_before=before, loss_after=before)
        log_eval(log, 0, before)
    interval = run.experiment.eval_interval
    began = time.perf_counter()
    for step in next_steps(run):
        outcome = train_step(run, step)
        seconds = time.perf_counter() - began
        progress = advance(progress, step, outcome, seconds)
        log_step(log, run, step, progress, outcome, seconds)
        number, last = step.position.step, step.position.step == run.total_steps
        if last or (interval and number % interval == 0):
            progress = replace(progress, loss_after=evaluate_loss(run))
            log_eval(log, number, progress.loss_after)
        save(run, step, progress, log, last=last)
        began = time.perf_counter()
    result = finish(run, progress)
    if log is not None:
        log.write("end", result.steps, loss_before=result.loss_before, loss_after=result.loss_after)
        log.close()
    return result


def next_steps(run: Run) -> Iterator[Step]:
    """The steps from the run's current position to its end."""
    weights = row_weights(run.train_rows, run.engine.module.reduction)
    return steps(
        run.plan_of,
        run.train_rows,
        weights,
        ranks=run.ranks.data_ranks,
        rank=run.ranks.data_rank,
        start=run.start.position,
        total_steps=run.total_steps,
    )


def train_step(run: Run, step: Step) -> Outcome:
    """One optimizer step.

    Raises:
        FimError: the loss or its gradient is not finite.
    """
    engine = run.engine
    total = accumulate(run, step)
    grad_norm, lr = plain_gradient_norm(engine), engine.get_lr()[0]
    engine.step()
    if engine.get_global_grad_norm() is not None:
        grad_norm = float(engine.get_global_grad_norm())
    if not np.isfinite(grad_norm) and engine.was_step_applied():
        names = (name for pack in step.micro_batches if pack is not None for name in pack.row_ids)
        raise FimError(
            f"The gradient of optimizer step {step.position.step} is not finite, though its loss is. The rows of the "
            f"step on rank {run.ranks.rank} are {_some(names)}. {CURE}"
        )
    return Outcome(total / step.denominator if step.denominator else 0.0, lr, grad_norm)


def accumulate(run: Run, step: Step) -> float:
    """Run a step's micro-batches and sum their gradients over all ranks, ready for the optimizer.

    DeepSpeed averages gradients over ranks. Each micro-batch's summed loss is therefore multiplied by
    ranks / (denominator of the step), so that the result is the gradient of the global mean. That also holds for ranks
    that compute parts of the same pack: each part has its own predictions, and their losses are summed.

    Returns:
        Loss, summed over all ranks.
    """
    engine, ranks = run.engine, run.ranks
    engine.train()
    factor = ranks.world_size / step.denominator if step.denominator else 0.0
    total, weight, targets = 0.0, 0.0, 0.0
    for index, pack in enumerate(step.micro_batches):
        if index:
            engine.step()
        engine.set_gradient_accumulation_boundary(index == len(step.micro_batches) - 1)
        batch = batch_of(run, pack)
        sums: LossSums = engine(batch.to(ranks.device))
        require_finite(sums, batch)
        engine.backward(sums.total * factor, scale_wrt_gas=False)
        total, targets = total + float(sums.total.detach()), targets + len(sums.losses)
        weight += float(sums.weight) * ranks.counts_batch
        run.beat()
    total, weight, targets = ranks.sum(total, weight, targets)
    if (weight, targets) != (step.denominator, step.trained_tokens):
        raise RuntimeError(
            f"the step predicted {targets} tokens with weight {weight}, its labels say {step.trained_tokens} and "
            f"{step.denominator}"
        )
    return total


def evaluate_loss(run: Run) -> float | None:
    """The training loss over all held-out rows, in nats; None if there are none.

    Every rank runs the same number of batches, as ZeRO-3 gathers weights on all ranks at once.

    Raises:
        FimError: the loss is not finite; the message names the rows.
    """
    if not run.eval_rows.targets_per_row.any():
        return None
    run.engine.eval()
    total, weight = 0.0, 0.0
    for pack in distribute(run.pack_plans.read(EVAL_PLAN), run.ranks.data_ranks)[run.ranks.data_rank]:
        batch = batch_of(run, pack, run.eval_rows)
        with torch.no_grad():
            sums: LossSums = run.engine(batch.to(run.ranks.device))
        require_finite(sums, batch)
        total, weight = total + float(sums.total), weight + float(sums.weight) * run.ranks.counts_batch
        run.beat()
    total, weight = run.ranks.sum(total, weight)
    return total / weight


def batch_of(run: Run, pack: Pack | None, rows: Rows | None = None) -> PackedBatch:
    """This rank's part of the batch of a pack.

    Without a pack, it is a batch of one row without targets, whose loss is 0 and has a gradient: all ranks must run the
    same number of micro-batches, as they wait for each other's gradients and weights.
    """
    batch = whole_batch(pack, run.train_rows if rows is None else rows)
    group = run.ranks.sequence_group
    return batch if group is None else batch.part(group.rank, group.size)


def whole_batch(pack: Pack | None, rows: Rows) -> PackedBatch:
    """The batch of a pack; without one, a batch of the shortest row without targets."""
    if pack is not None:
        return collate([pack], rows)
    shortest = int(np.argmin(rows.lengths))
    length = np.array([rows.lengths[shortest]], np.int32)
    alone = Pack(np.array([shortest]), (rows.row_ids[shortest],), length, np.zeros(1, np.int32))
    nothing = torch.empty(0, dtype=torch.int64)
    return replace(
        collate([alone], rows),
        predict_positions=nothing,
        targets=nothing,
        target_rows=nothing,
        row_targets=torch.zeros(1, dtype=torch.int64),
    )


def require_finite(sums: LossSums, batch: PackedBatch) -> None:
    """Check that the loss of a batch is finite.

    Raises:
        FimError: it is not; the message names the rows.
    """
    if torch.isfinite(sums.total):
        return
    bad = (~torch.isfinite(sums.row_totals)).nonzero()[:, 0].tolist() or range(len(batch.row_ids))
    raise FimError(f"The loss is not finite, because of the rows {_some(batch.row_ids[row] for row in bad)}. {CURE}")


def plain_gradient_norm(engine: DeepSpeedEngine) -> float:
    """Norm of the gradients before clipping, for ZeRO stage 0 in float32, where DeepSpeed does not compute it; else 0."""
    if engine.zero_optimization():
        return 0.0
    gradients = [param.grad for param in engine.module.parameters() if param.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def save(run: Run, step: Step, progress: Progress, log: EventLog | None, *, last: bool) -> None:
    """Save the states and export the weights that are due after this step."""
    run.beat()
    if run.save_plan.state_due(step, last):
        save_state(
            run.job.work.states,
            run.engine,
            run.ranks,
            progress=asdict(progress),
            fingerprint=run.fingerprint,
            batch_rows=run.batch_rows,
            keep=run.save_plan.keep,
        )
        if log is not None:
            log.write("checkpoint", step.position.step, type="deepspeed")
    for entry in run.save_plan.exports_due(step, last):
        save_export(run, entry, step.position.step, log)
    run.beat()


def save_export(run: Run, entry: CheckpointConfig, step: int, log: EventLog | None) -> None:
    """Export the weights of a step to an entry's `output_dir`, and remove the run's exports beyond those to keep.

    The log names each export by its path below `output_dir`, and records a removal before it happens.
    """
    exports = StepExports(entry, run.job, run.fingerprint)
    export_step(run.job, run.engine, run.tokenizer, run.ranks, exports, step)
    if log is None:
        return
    log.write("checkpoint", step, type="huggingface", path=f"{run.job.run_name}/step-{step}")
    for old in exports.surplus():
        log.write("removed", step, path=f"{run.job.run_name}/{old.name}")
        exports.remove(old)


def finish(run: Run, progress: Progress) -> TrainResult:
    """Export the trained model; returns the result of the run."""
    result = TrainResult(
        model=run.job.work.model,
        steps=progress.position.step,
        epochs=progress.position.epoch + (progress.position.batch > 0),
        loss_before=progress.loss_before,
        loss_after=progress.loss_after,
        train_loss_last=progress.train_loss_last,
        batch_rows=run.batch_rows,
        rows=progress.rows,
        packs=progress.packs,
        tokens=progress.tokens,
        trained_tokens=progress.trained_tokens,
        distinct_tokens=progress.distinct_tokens,
        empty_steps=progress.empty_steps,
        seconds=progress.seconds,
        world_size=run.ranks.world_size,
        resumed_from=run.resumed_from,
        packing=run.packing,
        warmup_steps=run.warmup_steps,
        notices=run.notices,
    )
    export_model(run.job, run.engine, run.tokenizer, run.ranks)
    if run.ranks.is_first:
        result.write(run.job.work.result)
    run.ranks.barrier()
    return result


def _some(names: Iterable[str], most: int = 10) -> str:
    """The first names of a list, and the number of the others."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
