"""Preparation of a training run: data, model, pack plans, DeepSpeed, and the state to resume from."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from functools import partial
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from fim_core.config import Experiment
from fim_core.config.deepspeed import offloads_optimizer
from fim_core.errors import FimError
from fim_core.modeling.flops import training_cost
from fim_core.modeling.load import training_dtype
from fim_core.modeling.sequence_parallel import require_sequence_parallel
from fim_core.network_config import network_config
from fim_core.packing import PackPlan, Rows, plan_packs
from fim_core.packing.plan import Strategy
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.store import digest
from fim_core.tokenization import load_rows
from fim_core.training.checkpoint import SavePlan, State, agreed_state, load_state, must_convert, remove_leftovers
from fim_core.training.deepspeed_config import deepspeed_config, require_supported
from fim_core.training.distributed import Ranks
from fim_core.training.export import build_for
from fim_core.training.job import Job
from fim_core.training.lr_schedule import build_scheduler, warmup_steps
from fim_core.training.model import choose_packing, save_activation_memory, with_loss
from fim_core.training.optimizer import build_optimizer
from fim_core.training.pack_plans import PackPlans
from fim_core.training.progress import Progress
from fim_core.training.step_exports import StepExports
from fim_core.training.steps import count_steps
from fim_core.training.utilization import Peak, peak_of

logger = logging.getLogger(__name__)

EVAL_PLAN = "eval"

FEW_STEPS = 50
"""A run of fewer optimizer steps gets a warning."""


@dataclass(frozen=True)
class Run:
    """Everything that a rank needs to train; built by `prepare_run`."""

    job: Job
    ranks: Ranks
    engine: DeepSpeedEngine
    tokenizer: PreTrainedTokenizerFast
    train_rows: Rows
    eval_rows: Rows
    pack_plans: PackPlans
    batch_rows: int
    save_plan: SavePlan
    fingerprint: str
    total_steps: int
    warmup_steps: int
    start: Progress
    resumed_from: int | None
    peak: Peak | None
    packing: Strategy
    notices: tuple[str, ...]

    @property
    def experiment(self) -> Experiment:
        """The experiment of the job."""
        return self.job.experiment

    def plan_of(self, epoch: int) -> PackPlan:
        """The packs of an epoch, in order."""
        return self.pack_plans.read(f"epoch-{epoch}")

    def beat(self) -> None:
        """Touch the heartbeat file."""
        if self.ranks.is_first:
            self.job.work.heartbeat.touch()


def prepare_run(job: Job, ranks: Ranks) -> Run:
    """Load data and model, plan all packs, initialize DeepSpeed, and load the newest state.

    Args:
        ranks: result of `join_ranks`; divided into sequence-parallel groups here.

    Raises:
        FimError: there is nothing to train on, an option cannot be satisfied, the newest state belongs to another
            experiment, or an `output_dir` belongs to another run.
    """
    experiment, work = job.experiment, job.work
    ranks = ranks.divide_sequences(experiment.sequence_parallel_size)
    save_plan = SavePlan.of(experiment)
    dtype = training_dtype(experiment.model, ranks.device)
    require_supported(dtype)

    tokenizer = load_tokenizer(job.tokenizer)
    require_sequence_parallel(network_config(experiment.model, tokenizer), ranks.sequence_parallel_size)
    train_rows, eval_rows = load_rows(job.dataset, "train"), load_rows(job.dataset, "eval")
    if not train_rows.targets_per_row.any():
        raise FimError(f"The training split of {job.dataset} has no position to train on. Check the rejected rows.")

    fingerprint = fingerprint_of(experiment, train_rows, eval_rows)
    state = agreed_state(work.states, fingerprint, ranks)
    start = Progress() if state is None else Progress.from_json(state.progress)
    saved_stage = None if state is None else state.stage
    config = deepspeed_config(experiment, world_size=ranks.world_size, dtype=dtype, saved_stage=saved_stage)
    stage = config["zero_optimization"]["stage"]

    seed_everything(experiment.seed)
    model = build_for(job, tokenizer, ranks.device, partition=config if stage == 3 else None)
    packing, notices = choose_packing(experiment, model.config)
    notices += context_notices(int(train_rows.lengths.max()), model.config)
    cost = training_cost(model)
    save_activation_memory(experiment, model)

    batch_rows = batch_rows_of_run(experiment, state, ranks.data_ranks)
    total_steps = count_steps(
        len(train_rows), batch_rows, experiment.epochs, experiment.max_steps, experiment.min_steps
    )
    run_steps = min(total_steps, experiment.exit_iteration or total_steps)
    notices += few_steps_notices(run_steps, len(train_rows), batch_rows, experiment)
    pack_plans = PackPlans(work.packs)
    if ranks.is_first:
        remove_leftovers(work.states)
        for entry in save_plan.exports:
            StepExports(entry, job, fingerprint).require_own()
        steps_per_epoch = count_steps(len(train_rows), batch_rows, epochs=1)
        epochs = range(start.position.epoch, -(-total_steps // steps_per_epoch))
        plan = partial(
            plan_packs, strategy=packing, pack_length=experiment.data.pack_length, seed=experiment.seed, cost=cost
        )
        for epoch in epochs:
            of_epoch = partial(plan, train_rows, batch_rows=batch_rows, ranks=ranks.data_ranks, epoch=epoch)
            pack_plans.make(f"epoch-{epoch}", of_epoch, ranks=ranks.data_ranks)
        pack_plans.make(EVAL_PLAN, partial(plan, eval_rows), ranks=1)
        work.heartbeat.touch()
    ranks.barrier()

    if state is not None and must_convert(state, ranks.world_size, stage):
        config["checkpoint"] = {"load_universal": True}
    engine = initialize_engine(experiment, model, config, total_steps, ranks)
    peak = peak_of(ranks.device, dtype)
    # From here on each rank draws different random numbers (dropout).
    seed_everything(experiment.seed + 1 + ranks.rank)
    if state is not None:
        if offloads_optimizer(experiment.deepspeed):
            logger.warning(
                "DeepSpeed's CPU Adam rounds differently after a resume: results may differ in their last digits."
            )
        load_state(state, engine, ranks, experiment.seed)
    return Run(
        job=job,
        ranks=ranks,
        engine=engine,
        tokenizer=tokenizer,
        train_rows=train_rows,
        eval_rows=eval_rows,
        pack_plans=pack_plans,
        batch_rows=batch_rows,
        save_plan=save_plan,
        fingerprint=fingerprint,
        total_steps=run_steps,
        warmup_steps=warmup_steps(experiment.scheduler, total_steps),
        start=start,
        resumed_from=None if state is None else state.position.step,
        peak=peak,
        packing=packing,
        notices=notices,
    )


def initialize_engine(
    experiment: Experiment,
    model: PreTrainedModel | PeftModel,
    config: dict[str, Any],
    total_steps: int,
    ranks: Ranks,
) -> DeepSpeedEngine:
    """Initialize DeepSpeed with the model's loss, the optimizer and its schedule.

    Args:
        config: result of `deepspeed_config`.
        total_steps: optimizer steps of the learning-rate schedule.
    """
    engine, *_ = deepspeed.initialize(
        model=with_loss(experiment, model, ranks.sequence_group),
        optimizer=build_optimizer(experiment, model),
        lr_scheduler=lambda optimizer: build_scheduler(experiment.scheduler, optimizer, total_steps),
        config=config,
    )
    if ranks.world_size == 1 and config["zero_optimization"]["stage"] == 0:
        # To sum gradients over this one rank, DeepSpeed would copy them all into a buffer and back.
        engine.enable_backward_allreduce = False
    return engine


def context_notices(longest_row: int, config: PretrainedConfig) -> tuple[str, ...]:
    """A warning if rows are longer than the context that the model was trained for, else nothing."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or longest_row <= limit:
        return ()
    notice = (
        f"The longest row has {longest_row} tokens, but the model's context is {limit} (max_position_embeddings): beyond "
        "that it trains at positions that it has never seen. Lower data.max_length to leave such rows out."
    )
    return (notice,)


def batch_rows_of_run(experiment: Experiment, state: State | None, data_ranks: int) -> int:
    """Rows of an optimizer step: as in the state that is resumed from, or else as in the experiment.

    Raises:
        FimError: the state was saved with another batch_rows than the experiment has.
    """
    asked = experiment.rows_per_step(data_ranks)
    if state is None or state.batch_rows == asked:
        return asked
    if not experiment.batch_grows_with_ranks:
        raise FimError(
            f"{state.path} was saved with batch_rows {state.batch_rows}, and the experiment has {asked}. Set batch_rows to "
            f"{state.batch_rows}, or remove {state.path.parent} to start from the beginning."
        )
    logger.warning(
        "The run keeps the %d rows per optimizer step that it began with; micro_batch_size and "
        "gradient_accumulation_steps on %d ranks with packs of their own would give %d.",
        state.batch_rows,
        data_ranks,
        asked,
    )
    return state.batch_rows


def few_steps_notices(steps: int, rows: int, batch_rows: int, experiment: Experiment) -> tuple[str, ...]:
    """A warning if the run has too few optimizer steps to learn much, else nothing."""
    if steps >= FEW_STEPS:
        return ()
    batch = "micro_batch_size or gradient_accumulation_steps" if experiment.batch_grows_with_ranks else "batch_rows"
    longer = next((name for name in ("exit_iteration", "max_steps") if steps == getattr(experiment, name)), "epochs")
    epochs = "" if experiment.epochs is None else f", epochs: {experiment.epochs}"
    notice = (
        f"The run takes only {steps} optimizer steps ({rows} rows, {batch_rows} per step{epochs}). "
        f"A model usually learns more with {FEW_STEPS} or more: lower {batch}, or raise {longer}."
    )
    return (notice,)


def fingerprint_of(experiment: Experiment, train_rows: Rows, eval_rows: Rows) -> str:
    """Digest of what must stay the same between attempts: options that decide the weights, and the rows."""
    sections = {"seed", "model", "epochs", "max_steps", "min_steps", "exit_iteration", "optimizer", "scheduler", "loss"}
    data = {"packing", "pack_length", "sample_weighted_loss"}
    clipping = experiment.deepspeed["gradient_clipping"]
    rows = {name: [len(rows), int(rows.offsets[-1])] for name, rows in (("train", train_rows), ("eval", eval_rows))}
    options = experiment.model_dump(mode="json", include=sections)
    options |= {"data": {key: getattr(experiment.data, key) for key in data}, "gradient_clipping": clipping}
    return digest({"options": options, "rows": rows})


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
