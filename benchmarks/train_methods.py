"""Training methods of the benchmark, each measured in a separate process."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.train_cases import Case, job_of, read_sample
from benchmarks.train_names import RECOMPUTED
from fim_core.device import device_type
from fim_core.modeling.flops import training_cost
from fim_core.modeling.support import causal_model
from fim_core.packing.plan import Strategy
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.tokenization import load_rows
from fim_core.training.export import build_for
from fim_core.training.utilization import measure_matmul, peak_memory

Result = dict[str, Any]


class Clock:
    """Seconds and processor seconds (all threads) between calls of `lap`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._began = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        if device_type() == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter(), time.process_time()
        self.seconds.append(now[0] - self._began[0])
        self.cpu_seconds.append(now[1] - self._began[1])
        self._began = now


Method = Callable[[Case, Path, int, int], Result]


def measure(
    case: Case,
    method: str,
    folder: Path,
    *,
    steps: int,
    max_length: int,
    methods: dict[str, Method] | None = None,
) -> Result:
    """Train on the sample in `folder` and return the measurements.

    Args:
        methods: methods by name. Default: METHODS.

    Returns:
        seconds, cpu_seconds, losses: of each optimizer step; computed: positions that went through the body in a step;
        operations: floating-point operations
        that a step's rows need; peak_mib, on a GPU that of its tensors; page_faults.
    """
    if method == "matmul":
        return {"flops": max(measure_matmul(torch.device("cpu"), torch.float32, 50) for _ in range(5))}
    result = (methods or METHODS)[method](case, folder, steps, max_length)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return result | {"peak_mib": peak_memory(torch.device(device_type())) / 2**20, "page_faults": faults}


def ours(
    packing: Strategy, case: Case, folder: Path, steps: int, max_length: int, *, recompute: bool = False
) -> Result:
    """The training loop of `fim train` on one rank; with `recompute`, with `activation_checkpointing`."""
    from fim_core.training.distributed import join_ranks
    from fim_core.training.loop import next_steps, train_step
    from fim_core.training.run import prepare_run

    name = f"{packing}-recompute" if recompute else packing
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    os.environ["FIM_RENDEZVOUS_FILE"] = str(folder / f"meeting-{name}")
    rows = read_sample(folder).rows
    job = job_of(
        case,
        folder,
        work=f"work-{name}",
        packing=packing,
        rows=rows,
        steps=steps,
        max_length=max_length,
        recompute=recompute,
    )
    run = prepare_run(job, join_ranks())
    clock, losses, last = Clock(), [], None
    for step in next_steps(run):
        outcome = train_step(run, step)
        clock.lap()
        losses.append(outcome.loss)
        last = step
    assert last is not None
    return {**laps_of(clock), "losses": losses, "computed": last.distinct_tokens, "operations": last.cost}


def laps_of(clock: Clock) -> Result:
    """A clock's laps."""
    return {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}


class Recorder(TrainerCallback):
    """Laps a clock after each optimizer step of a Trainer, and keeps the losses that it logs."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.losses: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock = Clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.clock.lap()

    def on_log(self, *_: Any, **known: Any) -> None:
        if "loss" in known["logs"]:
            self.losses.append(known["logs"]["loss"])


class Counted:
    """A collator that counts the positions of its batches, padding included."""

    def __init__(self, collator: Callable[..., dict[str, Any]]) -> None:
        self._collator = collator
        self.positions = 0

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self._collator(examples)
        self.positions += batch["input_ids"].numel()
        return batch


def _shared_options(
    case: Case, folder: Path, rows: int, steps: int, batch_size: int, *, recompute: bool = False
) -> dict[str, Any]:
    """The arguments of both other trainers, so that they do the same work as ours.

    One optimizer step takes all rows: more accumulation than an epoch has batches ends with the epoch.
    """
    return {
        "output_dir": str(folder / "other"),
        "use_cpu": device_type() == "cpu",
        "bf16": case.dtype == "bf16",
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": rows,
        "num_train_epochs": steps,
        "learning_rate": case.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": recompute,
        "seed": 0,
    }


def _model(
    case: Case, folder: Path, rows: int, max_length: int, attention: str = "sdpa"
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The same initial weights as ours, with transformers' own attention."""
    job = job_of(case, folder, work="work-others", packing="none", rows=rows, steps=1, max_length=max_length)
    tokenizer = load_tokenizer(job.tokenizer)
    model = causal_model(build_for(job, tokenizer, torch.device("cpu")))
    model.set_attn_implementation(attention)
    return model, tokenizer


def _run(trainer: Trainer, recorder: Recorder, folder: Path, steps: int) -> Result:
    assert isinstance(trainer.model, PreTrainedModel)
    rows, cost = load_rows(folder / "sample", "train"), training_cost(trainer.model)
    counted = Counted(trainer.data_collator)
    trainer.data_collator = counted
    trainer.train()
    return {
        **laps_of(recorder.clock),
        "losses": recorder.losses,
        "computed": counted.positions // steps,
        "operations": float(cost.of_rows(rows.lengths, rows.targets_per_row).sum()),
    }


def _trainer(
    batch_size: int, case: Case, folder: Path, steps: int, max_length: int, *, recompute: bool = False
) -> Result:
    """transformers' Trainer with padding, rows of similar length together."""
    sample = read_sample(folder)
    model, tokenizer = _model(case, folder, sample.rows, max_length)
    table = datasets.load_from_disk(str(folder / "sample" / "dataset"))["train"]
    options = _shared_options(case, folder, sample.rows, steps, batch_size, recompute=recompute)
    recorder = Recorder()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**options, train_sampling_strategy="group_by_length"),
        train_dataset=table.select_columns(["input_ids", "labels"]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[recorder],
    )
    return _run(trainer, recorder, folder, steps)


def trl(
    settings: dict[str, Any],
    case: Case,
    folder: Path,
    steps: int,
    max_length: int,
    *,
    attention: str = "sdpa",
    weights: str | None = None,
) -> Result:
    """TRL's SFTTrainer on token ids with a completion mask, its loss on completions only.

    Args:
        settings: of SFTConfig, and `batch_size`.
        weights: number format of the weights and of the optimizer's state. Default: that of the case.
    """
    from trl import SFTConfig, SFTTrainer

    sample = read_sample(folder)
    built = replace(case, dtype=weights or case.dtype)
    model, tokenizer = _model(built, folder, sample.rows, max_length, attention)
    table = datasets.load_from_disk(str(folder / "sample" / "dataset"))["train"]
    rows = {
        "input_ids": table["input_ids"],
        "completion_mask": [[int(label >= 0) for label in labels] for labels in table["labels"]],
    }
    chosen = {"max_length": max_length, **settings}
    batch_size = chosen.pop("batch_size")
    options = _shared_options(case, folder, sample.rows, steps, batch_size)
    recorder = Recorder()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**options, **chosen, completion_only_loss=True),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=tokenizer,
        callbacks=[recorder],
    )
    return _run(trainer, recorder, folder, steps)


METHODS: dict[str, Method] = {
    "ours, prefix_tree": partial(ours, "prefix_tree"),
    f"ours, prefix_tree{RECOMPUTED}": partial(ours, "prefix_tree", recompute=True),
    "ours, flat": partial(ours, "flat"),
    "ours, none": partial(ours, "none"),
    "Trainer, 1 row a batch": partial(_trainer, 1),
    f"Trainer, 1 row a batch{RECOMPUTED}": partial(_trainer, 1, recompute=True),
    "Trainer, 4 rows padded": partial(_trainer, 4),
    "TRL, 1 row a batch": partial(trl, {"batch_size": 1}),
    "TRL, 4 rows padded": partial(trl, {"batch_size": 4, "train_sampling_strategy": "group_by_length"}),
    "TRL, 4 rows padding-free": partial(trl, {"batch_size": 4, "padding_free": True, "max_length": None}),
    "TRL, packed (bfd)": partial(trl, {"batch_size": 1, "packing": True}),
}
"""Methods by name, ours first. TRL's chunked loss, its default, is on in all of its settings."""
