"""Training runs through the launcher on a device, for comparison with another device or number of ranks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets

from benchmarks.train_cases import tokenize_export
from fim_core.config import Experiment
from fim_core.launchers.launch import launch

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
"""About 5 million parameters with a vocabulary of 8,192."""

TOLERANCE = 0.02
"""Largest difference between the losses of bf16 and float32, relative to those of float32.

bf16 rounds weights and activations by up to 2^-8, 0.4%. These errors are of either sign and average out over the tokens of
a step, but they also change each update of the weights. See test_gpu_checks.py for the same comparison on a CPU.
"""


@dataclass(frozen=True)
class Outcome:
    """What a run logged.

    Attributes:
        losses: of each optimizer step.
        held_out: loss before and after training.
        tokens_per_second: of the fastest step.
        memory: peak bytes of rank 0.
        notices: warnings of the run, such as a backend that was replaced.
    """

    losses: list[float]
    held_out: tuple[float | None, float | None]
    tokens_per_second: float
    memory: int
    notices: list[str]

    def difference(self, other: Outcome) -> float:
        """Largest difference of the losses of a step, relative to the other's; infinite for other numbers of steps."""
        if len(self.losses) != len(other.losses):
            return float("inf")
        return max(abs(a - b) / b for a, b in zip(self.losses, other.losses, strict=True))


def make_rows(folder: Path, *, rows: int, vocabulary: int) -> Path:
    """Tokenize rows of the demo with a tokenizer trained on them; returns the folder."""
    tokenize_export(folder, max_length=2048, demo_rows=rows, vocabulary=vocabulary, eval_fraction=0.1)
    return folder


def make_long_rows(source: Path, folder: Path, *, length: int, rows: int) -> Path:
    """Rows of exactly `length` tokens, joined from the rows that `make_rows` wrote, with all their targets."""
    table = datasets.load_from_disk(str(source / "tokens" / "dataset"))["train"]
    tokens = [token for row in table["input_ids"] for token in row]
    labels = [label for row in table["labels"] for label in row]
    repeats = -(-rows * length // len(tokens))
    tokens, labels = tokens * repeats, labels * repeats
    cuts = range(0, rows * length, length)
    content = {
        "row_id": [f"long-{index}" for index in range(rows)],
        "type": [""] * rows,
        "input_ids": [tokens[cut : cut + length] for cut in cuts],
        "labels": [labels[cut : cut + length] for cut in cuts],
        "prompt_length": [0] * rows,
    }
    made = datasets.Dataset.from_dict({name: content[name] for name in table.column_names}, features=table.features)
    folder.mkdir(parents=True)
    splits = datasets.DatasetDict({"train": made, "eval": made.select([0])})
    splits.save_to_disk(str(folder / "tokens" / "dataset"))
    return folder


def experiment_of(
    *,
    dtype: str,
    packing: str = "prefix_tree",
    attention: str = "auto",
    steps: int = 20,
    batch_rows: int = 16,
    pack_length: int = 4096,
    ranks: int = 1,
    stage: int | None = None,
    model: dict[str, Any] | None = None,
    **options: Any,
) -> Experiment:
    """An experiment that trains from scratch.

    Args:
        stage: of ZeRO. Default: that of the experiment.
        options: further options of the experiment.
    """
    return Experiment.model_validate(
        {
            "name": "gpu-test",
            "model": {
                "config": model or MODEL,
                "tokenizer": "given",
                "dtype": dtype,
                "attn_implementation": attention,
            },
            "data": {"sources": [{"type": "demo"}], "pack_samples": packing, "pack_length": pack_length},
            "batch_rows": batch_rows,
            "epochs": None,
            "max_steps": steps,
            "optimizer": {"lr": 1e-3},
            "scheduler": {"name": "constant"},
            "deepspeed": {} if stage is None else {"zero_optimization": {"stage": stage}},
            "launcher": {"num_processes": ranks},
            **options,
        }
    )


def train(data: Path, tokenizer: Path, work: Path, *, device: str, ranks: int = 1, **options: Any) -> Outcome:
    """Train through the launcher.

    Args:
        data: folder of `make_rows` or `make_long_rows`.
        tokenizer: folder of `make_rows`.
        device: cpu or cuda.
        options: of `experiment_of`.
    """
    experiment = experiment_of(ranks=ranks, **options)
    events: list[dict[str, Any]] = []
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}
    with mock.patch.dict(os.environ, {"DS_ACCELERATOR": device, **threads}):
        result = launch(experiment, data / "tokens", tokenizer / "prompts" / "tokenizer", work, on_event=events.append)
    done = [event for event in events if event["event"] == "step"]
    logs = "\n".join(path.read_text(errors="replace") for path in sorted((work / "logs").glob("*.log")))
    replaced = [line for line in logs.splitlines() if "is used instead" in line]
    return Outcome(
        losses=[event["loss"] for event in done],
        held_out=(result.loss_before, result.loss_after),
        tokens_per_second=max(event["tokens_per_second"] for event in done),
        memory=max(event["memory_bytes"] for event in done),
        notices=[*result.notices, *replaced],
    )


def cells(run: str, outcome: Outcome, reference: Outcome) -> dict[str, str]:
    """The row of a run in the report."""
    return {
        "run": run,
        "first_loss": f"{outcome.losses[0]:.4f}",
        "last_loss": f"{outcome.losses[-1]:.4f}",
        "largest_difference": f"{outcome.difference(reference):.2%}",
        "tokens/s": f"{outcome.tokens_per_second:,.0f}",
        "peak_MiB": f"{outcome.memory / 2**20:,.0f}",
    }
