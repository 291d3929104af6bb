"""Benchmark of `fim estimate` against the measured peak memory of a rank, on a CPU.

    python -m benchmarks.estimate [--case NAME …]

Each case trains two optimizer steps with the launcher and loop of `fim train`, on random rows, and compares the largest
peak of its ranks (`ru_maxrss`, as the kernel counts it) with what the estimate says before. Memory besides
tensors is that of a process which has loaded the same libraries; it is most of the smallest case, so the table also
shows both figures without it.

By default glibc keeps freed blocks of up to 32 MiB in its heap, which a training step fragments: memory that is neither
used nor returned. Ranks on a CPU return blocks from 4 MiB on (`MALLOC_MMAP_THRESHOLD_`). The estimate counts smaller ones as never
returned, but no fragmentation. The last column shows a run with 32 MiB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from fim_core.config import DataConfig, Experiment, ModelConfig
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.device import RETURNED_FROM
from fim_core.folders.tokenized import IGNORE_INDEX

GIB = 2**30
TOKENIZER = 1000
GLIBC_DEFAULT = 32 * 2**20
"""Bytes up to which glibc keeps freed blocks."""

FEATURES = datasets.Features(
    row_id=datasets.Value("string"),
    type=datasets.Value("string"),
    input_ids=datasets.List(datasets.Value("int32")),
    labels=datasets.List(datasets.Value("int32")),
    prompt_length=datasets.Value("int32"),
)


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        title: what is large in it.
        network: transformers configuration, besides that of all cases.
        row: tokens of each row.
        rows: of an optimizer step, each a pack of its own.
        ranks: number of ranks.
        options: of the experiment.
    """

    title: str
    network: dict[str, int]
    row: int
    rows: int = 1
    ranks: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def _network(width: int, layers: int, vocabulary: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": max(1, width // 128),
        "vocab_size": vocabulary,
    }


def _zero(stage: int) -> dict[str, Any]:
    return {"deepspeed": {"zero_optimization": {"stage": stage}}}


CASES = {
    "small": Case("a small model", _network(128, 2, 2_048), row=64),
    "size": Case("a model of 145M parameters", _network(896, 12, 32_768), row=512, rows=2),
    "length": Case("a row of 16,384 tokens", _network(192, 3, 8_192), row=16_384),
    "checkpointing": Case(
        "activation checkpointing", _network(512, 8, 8_192), row=8_192, options={"activation_checkpointing": True}
    ),
    "tiles": Case(
        "the same with tiled MLP",
        _network(512, 8, 8_192),
        row=8_192,
        options={"activation_checkpointing": True, "tiled_mlp_compute": True},
    ),
    "parts": Case(
        "a row of 16,384 tokens on 2 ranks",
        _network(256, 3, 8_192),
        row=16_384,
        ranks=2,
        options={"sequence_parallel_size": 2},
    ),
    "zero2": Case("ZeRO stage 2, 2 ranks", _network(640, 10, 16_384), row=512, rows=4, ranks=2, options=_zero(2)),
    "zero3": Case("ZeRO stage 3, 2 ranks", _network(640, 10, 16_384), row=512, rows=4, ranks=2, options=_zero(3)),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=list(CASES))
    chosen = parser.parse_args().case
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it finds no GPU
    print("| case | parameters | estimate | measured | difference | of tensors alone | measured, 32 MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    spawn = multiprocessing.get_context("spawn")
    for name in chosen:
        # Each in a process of its own: the estimate counts its own memory as that of a rank without tensors, and the peak is
        # that of all processes that its process started.
        with tempfile.TemporaryDirectory() as folder, spawn.Pool(1, maxtasksperchild=1) as pool:
            prepare(CASES[name], Path(folder))
            estimate = pool.apply(estimated, (CASES[name], Path(folder)))
            measured = pool.apply(trained, (CASES[name], Path(folder), "measured"))
            default = pool.apply(trained_with_defaults, (CASES[name], Path(folder), "default"))
        print(line(CASES[name], estimate, measured, default), flush=True)


def line(case: Case, estimate: dict[str, Any], measured: int, default: int) -> str:
    """The row of a case in the table."""
    total, overhead = estimate["total"], estimate["parts"]["overhead"]
    tensors = (total - overhead) / (measured - overhead) - 1
    cells = [
        case.title,
        f"{estimate['parameters'] / 1e6:,.0f}M",
        f"{total / GIB:.2f} GiB",
        f"{measured / GIB:.2f} GiB",
        f"{total / measured - 1:+.0%}",
        f"{tensors:+.0%}",
        f"{default / GIB:.2f} GiB",
    ]
    return f"| {' | '.join(cells)} |"


def experiment_of(case: Case, folder: Path) -> Experiment:
    """The experiment of a case."""
    network = {"model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True, **case.network}
    return Experiment.model_validate(
        {
            "model": {"config": network, "tokenizer": str(folder / "prompts" / "tokenizer"), "dtype": "fp32"},
            "data": {"sources": [{"type": "demo"}], "pack_samples": "none", "max_length": case.row},
            "batch_rows": case.rows,
            "epochs": 2,
            "launcher": {"num_processes": case.ranks},
            **case.options,
        }
    )


def prepare(case: Case, folder: Path) -> None:
    """Put a tokenizer and random rows, a quarter of them targets, into a folder."""
    from fim_core.prompt_format.recipe import write_recipe
    from fim_core.prompts import PromptBuilder

    tokenizer = train_tokenizer(["SELECT order_id FROM orders WHERE total > 10;"], vocab_size=TOKENIZER)
    model = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")
    builder = PromptBuilder(tokenizer, model, DataConfig.model_validate({"sources": [{"type": "demo"}]}))
    tokenizer.save_pretrained(folder / "prompts" / "tokenizer")
    write_recipe(folder / "prompts", builder.recipe)
    numbers = np.random.default_rng(0)

    def split(rows: int, length: int) -> datasets.Dataset:
        tokens = numbers.integers(0, len(tokenizer), (rows, length)).astype(np.int32)
        labels = np.where(np.arange(length) >= 3 * length // 4, tokens, IGNORE_INDEX)
        columns = {
            "row_id": [str(row) for row in range(rows)],
            "type": [""] * rows,
            "input_ids": list(tokens),
            "labels": list(labels),
            "prompt_length": [3 * length // 4] * rows,
        }
        return datasets.Dataset.from_dict(columns).cast(FEATURES)

    splits = {"train": split(case.rows, case.row), "eval": split(1, 64)}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "rows" / "dataset"))


def estimated(case: Case, folder: Path) -> dict[str, Any]:
    """The estimate: parts, total and number of parameters."""
    from fim_core.tokenization import load_rows
    from fim_core.training.estimate.estimate import Estimator
    from fim_core.training.estimate.machine import Machine

    tokenizer = folder / "prompts" / "tokenizer"
    estimator = Estimator(experiment_of(case, folder), Machine.this_cpu(case.ranks), case.ranks, tokenizer)
    memory = estimator.estimate(estimator.workload_of(load_rows(folder / "rows", "train")), utilization=1.0).memory
    size = sum(parameter.numel() for parameter in estimator.networks.network(estimator.experiment).parameters())
    return {"parts": memory.parts, "total": memory.total, "parameters": size}


def trained(case: Case, folder: Path, name: str) -> int:
    """Train in a folder of this name; returns the largest peak of all ranks in bytes, if this process trains nothing else."""
    from fim_core.launchers.launch import launch

    launch(experiment_of(case, folder), folder / "rows", folder / "prompts" / "tokenizer", folder / name)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def trained_with_defaults(case: Case, folder: Path, name: str) -> int:
    """As `trained`, with the allocator's default."""
    os.environ[RETURNED_FROM] = str(GLIBC_DEFAULT)
    return trained(case, folder, name)


if __name__ == "__main__":
    main()
