"""Structured training events."""

from __future__ import annotations

import logging

import torch

from fim_core.training.progress import Outcome, Progress
from fim_core.training.run import Run
from fim_core.training.steps import Step
from fim_core.training.trackers import EventLog, open_trackers
from fim_core.training.utilization import peak_memory

logger = logging.getLogger(__name__)


def open_log(run: Run) -> EventLog | None:
    """Open the log of events with a `start` event; None on ranks other than 0."""
    if not run.ranks.is_first:
        return None
    trackers = open_trackers(run.experiment, run.job.work, run.resumed_from or 0)
    log = EventLog(run.job.work.metrics, trackers, run.resumed_from)
    log.write(
        "start",
        run.start.position.step,
        attempt=run.job.attempt,
        resumed_from=run.resumed_from,
        total_steps=run.total_steps,
        epochs=run.experiment.epochs,
        world_size=run.ranks.world_size,
        sequence_parallel_size=run.ranks.sequence_parallel_size,
        threads=torch.get_num_threads(),
        device=run.ranks.device.type,
        train_rows=len(run.train_rows),
        eval_rows=len(run.eval_rows),
        parameters=sum(getattr(param, "ds_numel", param.numel()) for param in run.engine.module.parameters()),
        trains=run.experiment.model.trains,
        lr=run.experiment.optimizer.lr,
        schedule=run.experiment.scheduler.name,
        warmup_steps=run.warmup_steps,
        gradient_clipping=run.experiment.deepspeed["gradient_clipping"],
        packing=run.packing,
        batch_rows=run.batch_rows,
        **({"peak_flops": run.peak.flops, "peak_source": run.peak.source} if run.peak else {}),
    )
    for notice in run.notices:
        log.write("warning", run.start.position.step, message=notice)
    return log


def log_step(log: EventLog | None, run: Run, step: Step, progress: Progress, outcome: Outcome, seconds: float) -> None:
    """Record one optimizer step. Rates are summed over all ranks."""
    if log is None:
        return
    number, interval = step.position.step, run.experiment.loss_log_interval
    if interval and number % interval == 0:
        logger.info("step %d of %d: loss %.4f", number, run.total_steps, outcome.loss)
    log.write(
        "step",
        step.position.step,
        epoch=step.position.epoch if not step.ends_epoch else step.position.epoch - 1,
        loss=outcome.loss,
        lr=outcome.lr,
        grad_norm=outcome.grad_norm,
        rows=step.rows,
        packs=step.packs,
        tokens=step.tokens,
        distinct_tokens=step.distinct_tokens,
        trained_tokens=step.trained_tokens,
        rows_total=progress.rows,
        seconds=seconds,
        rows_per_second=step.rows / seconds,
        tokens_per_second=step.tokens / seconds,
        distinct_tokens_per_second=step.distinct_tokens / seconds,
        **({"mfu": step.cost / seconds / (run.peak.flops * run.ranks.world_size)} if run.peak else {}),
        memory_bytes=peak_memory(run.ranks.device),
        empty_steps=progress.empty_steps,
    )


def log_eval(log: EventLog | None, step: int, loss: float | None) -> None:
    """Record the held-out loss, in nats; `loss` is None without held-out rows."""
    if log is not None and loss is not None:
        log.write("eval", step, loss=loss)
