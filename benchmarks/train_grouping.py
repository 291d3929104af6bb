"""Benchmark of grouping rows with similar prompts into one optimizer step: speed and held-out loss.

    python -m benchmarks.train_grouping [--blocks 1 4 8 0] [--seeds 42 43] [--rows N] [--epochs N] [--batch-rows N]
                                        [--model FOLDER --export FILE] [--lr X] [--eval-rows N] [--threads N]

Trains on the same rows with the same number and size of steps, filling batches with blocks of rows with similar prompts.
A block size of 1 draws rows at random; 0 makes a whole batch one block. Prints the held-out loss after equal numbers of
rows, the spread of step losses and gradient norms, and the speed. Without --model, the demo's small model is trained from
scratch on the demo's rows; with --model, LoRA adapters are trained on the rows of --export, with prompts without chat
markup. Each run is a separate process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fim_core.config import Experiment
from fim_core.training.job import Job, Work

SCRATCH = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 4, 8, 0], help="rows of a block; 0: a whole batch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--rows", type=int, default=1500, help="rows of the export, held-out ones included")
    parser.add_argument("--eval-rows", type=int, default=150, help="most rows held out")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--pack-length", type=int, default=2048)
    parser.add_argument("--points", type=int, default=4, help="evaluations of the held-out loss")
    parser.add_argument("--model", type=Path, help="folder of a pretrained model, trained with LoRA")
    parser.add_argument("--export", type=Path, help="train on this export instead of the demo's rows")
    parser.add_argument("--lr", type=float, help="default: 3e-3 from scratch, 2e-4 for LoRA")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        train(options, *options.side)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Train with every block size and seed, and print the results."""
    with tempfile.TemporaryDirectory() as name:
        prepare(options, Path(name))
        print(
            "| block | seed | held-out loss at equal rows | step losses, p5 to p95 | gradient norms, p5 to p95 "
            "| tokens / distinct | rows/s | distinct tokens/s |"
        )
        print("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
        for seed in options.seeds:
            for block in options.blocks:
                command = [sys.executable, "-m", "benchmarks.train_grouping", *sys.argv[1:], "--work", name]
                environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
                subprocess.run([*command, "--side", str(block), str(seed)], env=environment, check=True)
                print(line(block, seed, Work(Path(name) / f"block-{block}-{seed}")), flush=True)


def line(block: int, seed: int, work: Work) -> str:
    """A row of the table."""
    events = [json.loads(event) for event in work.metrics.read_text(encoding="utf-8").splitlines()]
    steps = [event for event in events if event["event"] == "step"]
    evals = [f"{event['loss']:.4f}" for event in events if event["event"] == "eval"]
    total = {key: sum(step[key] for step in steps) for key in ("rows", "tokens", "distinct_tokens", "seconds")}
    spread = []
    for key in ("loss", "grad_norm"):
        # Losses still fall in the first half of a run; the spread due to the rows of a step shows in the second half.
        values = [step[key] for step in steps[len(steps) // 2 :]]
        spread.append(f"{np.percentile(values, 5):.2f} to {np.percentile(values, 95):.2f}")
    cells = [
        "batch" if block == 0 else str(block),
        str(seed),
        " ".join(evals),
        *spread,
        f"{total['tokens'] / total['distinct_tokens']:.2f}",
        f"{total['rows'] / total['seconds']:.2f}",
        f"{total['distinct_tokens'] / total['seconds']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """Prepare the rows in `folder/prompts` and `folder/tokens`, limited to the first training and held-out rows."""
    import datasets

    from benchmarks.train_cases import tokenize_export

    tokenize_export(
        folder / "all",
        max_length=options.max_length,
        export=options.export,
        tokenizer=str(options.model) if options.model else None,
        vocabulary=2048,
        demo_rows=options.rows,
        eval_fraction=0.1,
        pretrained=str(options.model) if options.model else None,
    )
    splits = datasets.load_from_disk(str(folder / "all" / "tokens" / "dataset"))
    limits = {"train": options.rows, "eval": options.eval_rows}
    chosen = {split: splits[split].select(range(min(limits[split], len(splits[split])))) for split in limits}
    datasets.DatasetDict(chosen).save_to_disk(str(folder / "tokens" / "dataset"))


def train(options: argparse.Namespace, block: int, seed: int) -> None:
    """Train with one block size and seed, on one rank, in this process."""
    import fim_core.packing.plan
    from fim_core.packing.batches import epoch_order
    from fim_core.tokenization import load_rows
    from fim_core.training.distributed import join_ranks
    from fim_core.training.loop import fit
    from fim_core.training.run import prepare_run

    work = Work(options.work / f"block-{block}-{seed}")
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    os.environ["FIM_RENDEZVOUS_FILE"] = str(options.work / f"meeting-{block}-{seed}")
    tokenizer = options.work / "all" / "prompts" / "tokenizer"
    steps = options.epochs * -(-len(load_rows(options.work / "tokens", "train")) // options.batch_rows)
    model: dict[str, Any] = {"config": SCRATCH, "tokenizer": str(tokenizer)}
    if options.model:
        model = {"name_or_path": str(options.model), "peft_config": LORA}
    experiment = Experiment.model_validate(
        {
            "seed": seed,
            "model": {**model, "dtype": "fp32"},
            "data": {
                "sources": [{"type": "demo"}],
                "max_length": options.max_length,
                "pack_length": options.pack_length,
            },
            "batch_rows": options.batch_rows,
            "epochs": options.epochs,
            "eval_interval": max(1, steps // options.points),
            "optimizer": {"lr": options.lr or (2e-4 if options.model else 3e-3), "weight_decay": 0.05},
            "scheduler": {"name": "cosine", "warmup_ratio": 0.05},
            "deepspeed": {"gradient_clipping": 1.0, "zero_optimization": {"stage": 0}},
            "checkpoint": [{"type": "huggingface"}],
        }
    )
    size = block or options.batch_rows
    # Training itself has no option for the block size.
    fim_core.packing.plan.epoch_order = partial(epoch_order, block_rows=size)
    fit(prepare_run(Job(experiment, options.work / "tokens", tokenizer, work, "one"), join_ranks()))


if __name__ == "__main__":
    main()
