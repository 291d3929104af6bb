"""Differences between ArcticTraining's defaults and ours, and the report for its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fim_core.config.arctic_training.translate import Translation, section_of, sections_at
from fim_core.config.deepspeed import offloads_optimizer
from fim_core.config.experiment import Experiment


@dataclass(frozen=True)
class Difference:
    """A default that differs: the option, ArcticTraining's value, and ours."""

    option: str
    there: str
    here: str


@dataclass(frozen=True)
class _Default:
    """A default to compare.

    Attributes:
        keys: the default is not used if the file has any of them.
        there, here: ArcticTraining's value, and that of an experiment, as text.
        option: name to show. Default: the first key.
    """

    keys: tuple[str, ...]
    there: str
    here: Callable[[Experiment], str]
    option: str = ""


_DEFAULTS = (
    _Default(
        ("batch_rows", "micro_batch_size", "gradient_accumulation_steps"),
        "1 a rank",
        lambda e: _text(e.rows_per_step(1)),
    ),
    _Default(("optimizer.lr", "optimizer.learning_rate"), "0.0005", lambda e: _text(e.optimizer.lr)),
    _Default(("scheduler.name",), "linear", lambda e: e.scheduler.name),
    _Default(
        ("scheduler.warmup_ratio", "scheduler.warmup_steps", "scheduler.num_warmup_steps"),
        "0.1",
        lambda e: _text(e.scheduler.warmup_ratio),
    ),
    _Default(
        ("activation_checkpointing", "model.disable_activation_checkpoint"),
        "on",
        lambda e: _text(e.activation_checkpointing or e.activation_checkpoint_cpu_offload),
        "activation_checkpointing",
    ),
    _Default(("data.pack_samples",), "none", lambda e: e.data.packing),
    _Default(("data.sample_weighted_loss",), "off", lambda e: _text(e.data.sample_weighted_loss)),
    _Default(
        ("data.train_eval_split", "data.eval_fraction", "data.eval_sources[].name_or_path"),
        "0",
        lambda e: _text(e.data.eval_fraction) if not e.data.eval_sources else "0",
        "data.eval_fraction",
    ),
    _Default(("data.num_proc",), "16", lambda e: _text(e.data.num_proc)),
    _Default(("model.dtype",), "bf16", lambda e: _dtype(e.model.dtype)),
    _Default(("model.attn_implementation",), "sdpa", lambda e: e.model.attn_implementation),
    _Default(("logger.print_output_ranks",), "[0]", lambda e: _text(e.logger.print_output_ranks)),
)


def differences(done: Translation, experiment: Experiment) -> list[Difference]:
    """Options that the file does not set and for which ArcticTraining's default differs from ours."""
    rows = [
        (default.option or default.keys[0], default.there, default.here(experiment))
        for default in _DEFAULTS
        if not done.given & set(default.keys)
    ]
    rows += _deepspeed_rows(experiment)
    if "data.max_length" not in done.given:
        rows.append(("data.max_length", _context_of(experiment), _text(experiment.data.max_length)))
    rows += _saving_rows(done, experiment)
    if (adapters := experiment.model.peft_config) is not None:
        given = section_of(section_of(done.content, "model"), "peft_config")
        for name, there in (("r", "8"), ("lora_alpha", "8"), ("target_modules", "the model type's own")):
            if name not in given:
                rows.append((f"model.peft_config.{name}", there, _text(getattr(adapters, name))))
    if experiment.wandb is not None:
        for name, there in (("enable", "off"), ("project", "arctic-training")):
            if f"wandb.{name}" not in done.given:
                rows.append((f"wandb.{name}", there, _text(getattr(experiment.wandb, name))))
    return [Difference(*row) for row in rows if row[1] != row[2]]


def _deepspeed_rows(experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    # gradient_clipping is not listed: its default is 1.0 in DeepSpeed, in ArcticTraining and here.
    zero = experiment.deepspeed.get("zero_optimization")
    if zero is None or "stage" not in zero:
        # Without the section ArcticTraining uses stage 2; in a section without a stage DeepSpeed uses 0.
        there = "2" if zero is None else "0"
        here = "1" if offloads_optimizer(experiment.deepspeed) else "1; 0 for one rank in fp32"
        yield "deepspeed.zero_optimization.stage", there, here


def _saving_rows(done: Translation, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    entries = [entry for entry, _ in sections_at(done.content, "checkpoint[]")]
    if not entries:
        yield "checkpoint", "nothing is saved", "the trained model is kept"
    for number, entry in enumerate(entries):
        if "save_end_of_training" not in entry:
            name = done.name_of(("checkpoint", number))
            yield f"{name}.save_end_of_training", "off", _text(experiment.checkpoint[number].save_end_of_training)


def _dtype(dtype: str) -> str:
    return "bf16 on a GPU, fp32 on a CPU" if dtype == "auto" else dtype


def _context_of(experiment: Experiment) -> str:
    """ArcticTraining's default of max_length: the context length of the model."""
    place = experiment.model.name_or_path
    try:
        config = json.loads((Path(place or "") / "config.json").read_text(encoding="utf-8"))
        return _text(config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return "the model's max_position_embeddings"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "chosen at the start" if value is None else str(value)


def report(done: Translation, experiment: Experiment) -> str | None:
    """Describe a loaded file of ArcticTraining in lines of plain text; None for a file of our own."""
    if not done.is_reference:
        return None
    rows = differences(done, experiment)
    lines = [f"{experiment.name}: read as a file of ArcticTraining."]
    if rows:
        lines.append("Defaults that differ, for options that the file does not set:")
        lines += _table([("option", "ArcticTraining", "here"), *((row.option, row.there, row.here) for row in rows)])
    for title, notes in (("Translated:", done.changes), ("Without effect here:", done.no_effect)):
        if notes:
            lines += [title, *(f"  {note}" for note in notes)]
    return "\n".join(lines)


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}" for row in rows]
