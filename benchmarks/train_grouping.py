"""What it costs to have similar rows in one optimizer step: held-out loss after equal rows, prefix_tree against none.

    python -m benchmarks.train --grouping

Both train the demo's small model on the demo's rows with the same seed, schedule and number of rows in a step: one
pack of prefix_tree, where rows of one worksheet stand together, and as many rows drawn at random. One pack a step is
the worst case: more packs a step (accumulation, ranks) mix more worksheets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fim_core.config import Experiment
from fim_core.packing.plan import Strategy
from fim_core.training.job import Job, Work

ROWS = 1500
EPOCHS = 2
MAX_LENGTH = 2048
POINTS = 8
MODEL = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def compare(threads: int) -> None:
    """Train both ways and print their curves."""
    from benchmarks.train_cases import tokenize_export
    from fim_core.packing import plan_packs
    from fim_core.tokenization import load_rows

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenize_export(folder, max_length=MAX_LENGTH, vocabulary=2048, demo_rows=ROWS, eval_fraction=0.1)
        rows = load_rows(folder / "tokens", "train")
        stats = plan_packs(rows, strategy="prefix_tree", max_length=MAX_LENGTH).stats
        per_step = round(stats.rows_per_pack)
        interval = max(1, EPOCHS * stats.packs // POINTS)
        print(f"{len(rows):,} rows, {EPOCHS} epochs, {per_step} rows a step, {stats.packs} packs\n")
        curves = {}
        for packing, size in (("prefix_tree", 1), ("none", per_step)):
            command = [sys.executable, "-m", "benchmarks.train_grouping", packing, str(size), str(interval), name]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
            subprocess.run(command, env=environment, check=True)
            curves[packing] = curve(Work(folder / packing))
    print("| step | rows, prefix_tree | held-out loss | rows, none | held-out loss | difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for step in sorted(curves["prefix_tree"].keys() & curves["none"].keys()):
        (tree_rows, tree), (none_rows, none) = (curves[packing][step] for packing in ("prefix_tree", "none"))
        print(f"| {step} | {tree_rows:,} | {tree:.4f} | {none_rows:,} | {none:.4f} | {tree - none:+.4f} |")
    last = {packing: list(points.values())[-1] for packing, points in curves.items()}
    for packing, (count, loss) in last.items():
        print(f"\nAt the end of {packing}: {loss:.4f} after {count:,} rows.")


def curve(work: Work) -> dict[int, tuple[int, float]]:
    """By step the rows trained on so far, and the held-out loss."""
    rows, points = {0: 0}, {}
    for event in map(json.loads, work.metrics.read_text(encoding="utf-8").splitlines()):
        if event["event"] == "step":
            rows[event["step"]] = event["rows_total"]
        elif event["event"] == "eval":
            points[event["step"]] = rows[event["step"]], event["loss"]
    return points


def train(packing: Strategy, micro_batch_size: int, eval_interval: int, folder: Path) -> None:
    """Train one way, on one rank, in this process."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    os.environ["FIM_INIT_METHOD"] = (folder / f"meeting-{packing}").as_uri()
    from fim_core.training.distributed import join_ranks
    from fim_core.training.engine import fit
    from fim_core.training.setup import setup

    tokenizer = folder / "prompts" / "tokenizer"
    experiment = Experiment.model_validate(
        {
            "model": {"config": MODEL, "tokenizer": str(tokenizer), "dtype": "fp32"},
            "data": {"sources": [{"type": "demo"}], "pack_samples": packing, "max_length": MAX_LENGTH},
            "micro_batch_size": micro_batch_size,
            "epochs": EPOCHS,
            "eval_interval": eval_interval,
            "optimizer": {"lr": 3e-3, "weight_decay": 0.05, "betas": [0.9, 0.98]},
            "scheduler": {"name": "cosine", "warmup_ratio": 0.05},
            "deepspeed": {"gradient_clipping": 1.0, "zero_optimization": {"stage": 0}},
        }
    )
    fit(setup(Job(experiment, folder / "tokens", tokenizer, Work(folder / packing), packing), join_ranks()))


def main() -> None:
    """Train the way that the arguments say."""
    parser = argparse.ArgumentParser(description="One side of `python -m benchmarks.train --grouping`.")
    parser.add_argument("packing", choices=["prefix_tree", "none"])
    parser.add_argument("micro_batch_size", type=int)
    parser.add_argument("eval_interval", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    train(options.packing, options.micro_batch_size, options.eval_interval, options.folder)


if __name__ == "__main__":
    main()
