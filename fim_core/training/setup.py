"""What a rank needs before it can train: data, model, plans, DeepSpeed, and where the newest state stands."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from functools import partial

import deepspeed
import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from fim_core.config import Experiment
from fim_core.config.deepspeed import offloads_optimizer, zero_stage
from fim_core.errors import FimError
from fim_core.modeling.flops import training_cost
from fim_core.modeling.load import enable_activation_checkpointing, training_dtype
from fim_core.modeling.loss import PackedCausalLM
from fim_core.modeling.support import supports_prefix_tree
from fim_core.packing import PackPlan, Rows, plan_packs
from fim_core.packing.cost import Cost
from fim_core.packing.plan import Strategy
from fim_core.store import digest
from fim_core.tokenization import load_rows
from fim_core.tokens import load_tokenizer
from fim_core.training.checkpoint import SavePlan, agreed_state, load_state, must_convert, remove_leftovers
from fim_core.training.counters import Progress
from fim_core.training.deepspeed_config import deepspeed_config
from fim_core.training.distributed import Ranks
from fim_core.training.export import build_for
from fim_core.training.job import Job
from fim_core.training.metrics import Peak, peak_of
from fim_core.training.optimizer import build_optimizer
from fim_core.training.plans import Plans
from fim_core.training.schedule import build_scheduler
from fim_core.training.step_exports import StepExports
from fim_core.training.steps import Sharding, count_steps

logger = logging.getLogger(__name__)

EVAL_PLAN = "eval"


@dataclass(frozen=True)
class Run:
    """Everything that a rank needs to train; made by `setup`."""

    job: Job
    ranks: Ranks
    engine: DeepSpeedEngine
    tokenizer: PreTrainedTokenizerFast
    train_rows: Rows
    eval_rows: Rows
    plans: Plans
    sharding: Sharding
    save_plan: SavePlan
    fingerprint: str
    total_steps: int
    start: Progress
    resumed_from: int | None
    cost: Cost
    peak: Peak
    packing: Strategy
    notices: tuple[str, ...]

    @property
    def experiment(self) -> Experiment:
        """The experiment that is run."""
        return self.job.experiment

    def plan_of(self, epoch: int) -> PackPlan:
        """The packs of an epoch, in order."""
        return self.plans.read(f"epoch-{epoch}")

    def beat(self) -> None:
        """Show a sign of life."""
        if self.ranks.is_first:
            self.job.work.heartbeat.touch()


def setup(job: Job, ranks: Ranks) -> Run:
    """Load data and model, plan all packs, start DeepSpeed, and go to where the newest state stands.

    Raises:
        FimError: nothing to train on; an option that cannot be honoured; a state of another experiment; an
            `output_dir` that holds what another run wrote.
    """
    experiment, work = job.experiment, job.work
    save_plan = SavePlan.of(experiment)
    dtype = training_dtype(experiment.model, ranks.device)
    config = deepspeed_config(experiment, world_size=ranks.world_size, dtype=dtype)

    tokenizer = load_tokenizer(job.tokenizer)
    train_rows, eval_rows = load_rows(job.dataset, "train"), load_rows(job.dataset, "eval")
    if not train_rows.targets_per_row.any():
        raise FimError(f"The training split of {job.dataset} has no position to train on. Look at the rejected rows.")

    seed_everything(experiment.seed)
    model = build_for(job, tokenizer, ranks.device, partition=config if zero_stage(experiment.deepspeed) == 3 else None)
    packing, notices = choose_packing(experiment, model)
    notices += beyond_context(int(train_rows.lengths.max()), model.config)
    cost = training_cost(model)
    if experiment.activation_checkpointing or experiment.activation_checkpoint_cpu_offload:
        # On a CPU activations are in host memory already, and there is no pinned memory to copy them to.
        offload = experiment.activation_checkpoint_cpu_offload and ranks.device.type != "cpu"
        enable_activation_checkpointing(model, offload=offload)

    fingerprint = fingerprint_of(experiment, train_rows, eval_rows)
    state = agreed_state(work.states, fingerprint, ranks)
    start = Progress() if state is None else Progress.from_json(state.progress)
    sharding = Sharding(
        ranks.world_size, ranks.rank, experiment.gradient_accumulation_steps, experiment.micro_batch_size
    )
    plans = Plans(work.packs)
    if ranks.is_first:
        remove_leftovers(work.states)
        for entry in save_plan.exports:
            StepExports(entry, job, fingerprint).require_own()
        make_plans(plans, experiment, packing, cost, train_rows, eval_rows)
        work.heartbeat.touch()
    ranks.barrier()
    total_steps = count_steps(
        lambda epoch: plans.packs(f"epoch-{epoch}"), sharding, start.position, experiment.epochs, experiment.max_steps
    )

    if state is not None and must_convert(state, ranks.world_size, zero_stage(experiment.deepspeed)):
        config["checkpoint"] = {"load_universal": True}
    engine, *_ = deepspeed.initialize(
        model=PackedCausalLM(
            model,
            reduction="sample" if experiment.data.sample_weighted_loss else "token",
            label_smoothing=experiment.loss.label_smoothing,
            z_loss=experiment.loss.z_loss,
        ),
        optimizer=build_optimizer(experiment, model),
        lr_scheduler=lambda optimizer: build_scheduler(experiment.scheduler, optimizer, total_steps),
        config=config,
    )
    if ranks.world_size == 1 and zero_stage(experiment.deepspeed) == 0:
        # DeepSpeed would copy all gradients into a buffer of their size, and back, to sum them over one rank.
        engine.enable_backward_allreduce = False
    peak = peak_of(ranks.device, dtype)
    # From here on each rank draws its own numbers (dropout).
    seed_everything(experiment.seed + 1 + ranks.rank)
    if state is not None:
        if offloads_optimizer(experiment.deepspeed):
            logger.warning(
                "DeepSpeed's CPU Adam resumes with other roundings: results may differ in their last digits."
            )
        load_state(state, engine, ranks, experiment.seed)
    return Run(
        job=job,
        ranks=ranks,
        engine=engine,
        tokenizer=tokenizer,
        train_rows=train_rows,
        eval_rows=eval_rows,
        plans=plans,
        sharding=sharding,
        save_plan=save_plan,
        fingerprint=fingerprint,
        total_steps=total_steps,
        start=start,
        resumed_from=None if state is None else state.position.step,
        cost=cost,
        peak=peak,
        packing=packing,
        notices=notices,
    )


def beyond_context(longest_row: int, config: PretrainedConfig) -> tuple[str, ...]:
    """What to say of rows that are longer than what a pretrained model was made for; nothing where none is."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or longest_row <= limit:
        return ()
    notice = (
        f"The longest row has {longest_row} tokens, and the model was made for {limit} (max_position_embeddings): beyond "
        "that it trains at positions that it has never seen. data.max_length keeps such rows out."
    )
    logger.warning("%s", notice)
    return (notice,)


def choose_packing(experiment: Experiment, model: PreTrainedModel | PeftModel) -> tuple[Strategy, tuple[str, ...]]:
    """The packing that this model can be trained with exactly, and what to say if it is not the one asked for."""
    asked = experiment.data.packing
    supported, why = supports_prefix_tree(model.config)
    if asked != "prefix_tree" or supported:
        return asked, ()
    notice = f"Rows are packed flat, data.pack_samples prefix_tree is not possible: {why}."
    logger.warning("%s", notice)
    return "flat", (notice,)


def make_plans(
    plans: Plans, experiment: Experiment, packing: Strategy, cost: Cost, train_rows: Rows, eval_rows: Rows
) -> None:
    """Plan the packs of every epoch that the run reaches, and of the held-out rows."""

    def plan(rows: Rows, epoch: int) -> PackPlan:
        return plan_packs(
            rows,
            strategy=packing,
            max_length=experiment.data.max_length,
            seed=experiment.seed,
            epoch=epoch,
            cost=cost,
        )

    for epoch in range(experiment.epochs):
        plans.make(f"epoch-{epoch}", partial(plan, train_rows, epoch))
    plans.make(EVAL_PLAN, lambda: plan(eval_rows, 0))


def fingerprint_of(experiment: Experiment, train_rows: Rows, eval_rows: Rows) -> str:
    """Digest of what must not change between attempts: options that decide the weights, and the rows."""
    sections = {"seed", "model", "epochs", "max_steps", "optimizer", "scheduler", "loss"}
    data = {"packing", "max_length", "sample_weighted_loss"}
    rows = {name: [len(rows), int(rows.offsets[-1])] for name, rows in (("train", train_rows), ("eval", eval_rows))}
    options = experiment.model_dump(mode="json", include=sections)
    return digest({"options": options, "data": {key: getattr(experiment.data, key) for key in data}, "rows": rows})


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
