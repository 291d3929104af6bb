"""Benchmark of long rows: peak memory of a rank, by length, ranks that share a row, and tiled MLP.

    python -m benchmarks.long [--lengths N ...] [--sizes N ...] [--work FOLDER]

Each setting trains one optimizer step on one row with the trainer of `fim train`, on `sequence_parallel_size` ranks that
meet by gloo on this machine, with activation checkpointing. The memory of a rank is its maximum resident set size less
what it had before the step (libraries, weights). The loss of a length must not depend on the setting. Where the memory goes is
what `fim estimate` says: bytes of a token that are kept from the forward pass, and bytes that a layer needs in its backward
pass, at their peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from benchmarks.train_cases import tokenize_export
from fim_core.config import Experiment
from fim_core.packing import IGNORE_INDEX
from fim_core.tokenization import load_rows
from fim_core.training.job import Job, Work

TARGETS = 256
"""Tokens of the row's completion."""

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 262_144,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[8_192, 32_768, 131_072, 262_144])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4], help="sequence_parallel_size")
    parser.add_argument("--work", type=Path, help="folder for data and logs; default: a temporary one")
    parser.add_argument("--rank-of", nargs=3, type=int, metavar=("LENGTH", "SIZE", "TILED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        length, size, tiled = options.rank_of
        print(json.dumps(train_one_step(options.work, length, size, tiled=bool(tiled))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        compare(options.work or Path(temporary), options.lengths, options.sizes)


def compare(folder: Path, lengths: list[int], sizes: list[int]) -> None:
    """Run every setting and print its line."""
    tokenize_export(folder / "demo", max_length=8192, vocabulary=1024, demo_rows=300)
    print(
        "| tokens of the row | ranks | tiled MLP | memory of a rank | bytes a token of a rank | kept | backward | loss | seconds |"
    )
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    furthest = 0.0
    for length in lengths:
        make_row(folder, length)
        losses = []
        for size in sizes:
            for tiled in (False, True):
                ranks = run_ranks(folder, length, size, tiled=tiled)
                memory, loss = max(rank["memory"] for rank in ranks), ranks[0]["loss"]
                losses.append(loss)
                tokens = length / size
                parts = estimated(experiment_of(folder / "demo" / "prompts" / "tokenizer", length, size, tiled=tiled))
                kept, backward = (parts.get(part, 0) / tokens for part in ("activations", "backward pass"))
                print(
                    f"| {length:,} | {size} | {'yes' if tiled else 'no'} | {memory / 2**20:,.0f} MiB "
                    f"| {memory / tokens:,.0f} | {kept:,.0f} | {backward:,.0f} | {loss:.6f} | {ranks[0]['seconds']:.1f} |",
                    flush=True,
                )
        furthest = max(furthest, *(abs(loss / losses[0] - 1) for loss in losses))
    print(f"\nLargest relative difference between losses of one length: {furthest:.1e}")


def make_row(folder: Path, length: int) -> None:
    """Store one row of `length` tokens of the demo's rows, of which the last are predicted, and a short one to hold out."""
    rows = load_rows(folder / "demo" / "tokens", "train")
    tokens = np.resize(np.concatenate([rows.tokens_of(row) for row in range(len(rows))]), length)
    features = datasets.load_from_disk(str(folder / "demo" / "tokens" / "dataset"))["train"].features
    splits = {}
    for split, size in (("train", length), ("eval", 512)):
        labels = [IGNORE_INDEX] * (size - TARGETS) + tokens[size - TARGETS : size].tolist()
        content = {"row_id": [split], "type": [""], "input_ids": [tokens[:size].tolist()], "labels": [labels]}
        splits[split] = datasets.Dataset.from_dict(content | {"prompt_length": [size - TARGETS]}, features=features)
    datasets.DatasetDict(splits).save_to_disk(str(folder / f"row-{length}" / "dataset"))


def run_ranks(folder: Path, length: int, size: int, *, tiled: bool) -> list[dict[str, Any]]:
    """Train one step on `size` ranks; returns what each measured."""
    name = f"{length}-{size}-{int(tiled)}-{os.urandom(4).hex()}"
    threads = max(1, len(os.sched_getaffinity(0)) // size)
    processes = []
    for rank in range(size):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",
            "FIM_RENDEZVOUS_FILE": str(folder / f"meeting-{name}"),
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, "-m", "benchmarks.long", "--work", str(folder), "--rank-of"]
        setting = [str(length), str(size), str(int(tiled))]
        with open(folder / f"{name}-{rank}.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, *setting], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        processes.append(process)
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"A rank failed; its log is {folder}/{name}-RANK.log")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def experiment_of(tokenizer: Path, length: int, size: int, *, tiled: bool) -> Experiment:
    """The experiment of a setting."""
    return Experiment.model_validate(
        {
            "model": {"config": MODEL, "tokenizer": str(tokenizer), "dtype": "fp32"},
            "data": {"sources": [{"type": "demo"}], "max_length": length, "pack_length": length},
            "batch_rows": 1,
            "sequence_parallel_size": size,
            "activation_checkpointing": True,
            "tiled_mlp_compute": tiled,
        }
    )


def estimated(experiment: Experiment) -> dict[str, int]:
    """What the estimate says of a rank: bytes by component."""
    from fim_core.training.estimate.machine import Machine
    from fim_core.training.estimate.pack_shape import PackShape
    from fim_core.training.estimate.rank_memory import Networks, RankMemory

    size = experiment.sequence_parallel_size
    memory = RankMemory(experiment, Networks(Machine.this_cpu(size)), ranks=size, several_packs=False)
    return memory.of(PackShape(experiment.data.max_length, TARGETS)).parts


def train_one_step(folder: Path, length: int, size: int, *, tiled: bool) -> dict[str, float]:
    """Train one step as one rank; returns its memory in bytes, its seconds and the loss."""
    from fim_core.training.distributed import join_ranks, leave_ranks
    from fim_core.training.loop import next_steps, train_step
    from fim_core.training.run import prepare_run

    tokenizer = folder / "demo" / "prompts" / "tokenizer"
    experiment = experiment_of(tokenizer, length, size, tiled=tiled)
    work = Work(folder / f"work-{length}-{size}-{int(tiled)}")
    run = prepare_run(Job(experiment, folder / f"row-{length}", tokenizer, work, "one"), join_ranks())
    before = resident()
    began = time.perf_counter()
    outcome = train_step(run, next(next_steps(run)))
    result = {"memory": peak() - before, "seconds": time.perf_counter() - began, "loss": outcome.loss}
    leave_ranks()
    return result


def resident() -> int:
    """Resident set size of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """Maximum resident set size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
