"""The training loop: one exact loss over the whole optimizer step, on DeepSpeed."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace

import deepspeed
import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from transformers import PreTrainedTokenizerBase

from fim_core.errors import FimError
from fim_core.modeling.load import build_model
from fim_core.modeling.loss import LossSums, PackedCausalLM
from fim_core.packing import Pack, PackedBatch, Rows, collate, plan_packs
from fim_core.store import digest
from fim_core.training.checkpoint import SavePlan, State, load_state, newest_state, remove_leftovers, save_state
from fim_core.training.deepspeed_config import TORCH_DTYPES, deepspeed_config, precision, zero_stage
from fim_core.training.distributed import Ranks
from fim_core.training.export import export_model
from fim_core.training.job import Job, TrainResult
from fim_core.training.metrics import ModelFlops, peak_memory, peak_of
from fim_core.training.optimizer import build_optimizer
from fim_core.training.plans import Plans
from fim_core.training.schedule import build_scheduler
from fim_core.training.steps import Position, Sharding, Step, count_steps, micro_batches, row_weights, steps
from fim_core.training.trackers import EventLog, open_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What a run has done since its very first step. Kept in every state."""

    position: Position = Position()
    rows: int = 0
    tokens: int = 0
    distinct_tokens: int = 0
    empty_steps: int = 0
    seconds: float = 0.0
    loss_before: float | None = None
    loss_last: float | None = None
    train_loss_last: float | None = None


@dataclass
class Run:
    """Everything that a rank needs to train; made by `setup`."""

    job: Job
    ranks: Ranks
    engine: DeepSpeedEngine
    tokenizer: PreTrainedTokenizerBase
    train_rows: Rows
    eval_rows: Rows
    plans: Plans
    sharding: Sharding
    save_plan: SavePlan
    fingerprint: str
    total_steps: int
    progress: Progress
    resumed_from: int | None
    flops: ModelFlops
    packing: str
    notices: tuple[str, ...]
    empty: list[Pack] = field(default_factory=list)
