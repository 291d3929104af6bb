"""Benchmark of training on rows with long shared prompts, against transformers' Trainer and TRL's SFTTrainer.

    python -m benchmarks.train [--case a b] [--rows N] [--steps N] [--max-length N] [--threads N]
                               [--export FILE] [--tokenizer FOLDER] [--methods NAME …]
    python -m benchmarks.train --model FOLDER [--lora] --export FILE [--rows N] [--steps N] …

All methods use the same rows, weights, precision (float32), optimizer and clipping: our three packings through the training
loop of `fim train`, transformers' Trainer with padding, and TRL's SFTTrainer in each setting that runs on a CPU. Every
optimizer step takes all rows, so the losses of all methods must agree at every step; they are printed. Each measurement
runs in a separate process, so that peak memory is measured separately. Case (a) is a small body with a vocabulary of
151,936; case (b) has 12 layers of width 512 and a vocabulary of 8,192.

The share of the machine's rate relates the operations that the rows need (each shared prefix once with prefix_tree, the
output layer only at predicted positions) to the best matrix product of the same run; padding and discarded logits do not
count.

The method that recomputes activations is about memory, so its process also makes glibc return freed blocks of 4 MiB and
more at once (MALLOC_MMAP_THRESHOLD_). `fim train` takes this variable from its environment as well.

With --model a pretrained model is trained instead of the cases: all weights, or adapters with --lora. Page faults are those
of the whole process, including loading.

Without --export the rows are the demo's; without --tokenizer one is trained on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.train_names import RECOMPUTED

if TYPE_CHECKING:
    from benchmarks.train_cases import Case

OURS = "ours, "
TREE = "ours, prefix_tree"
LEAN_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", default=["a", "b"], choices=["a", "b"])
    parser.add_argument("--rows", type=int, default=48, help="minimum number of rows; whole packs are drawn")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps; the fastest counts")
    parser.add_argument("--max-length", type=int, default=2048, help="maximum tokens of a row and of a pack")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", type=Path, help="train on this export instead of the demo's rows")
    parser.add_argument("--tokenizer", help="folder or hub id, for case (a)")
    parser.add_argument("--model", help="folder of a pretrained model, instead of the cases")
    parser.add_argument("--lora", action="store_true", help="train adapters on --model")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model:
        options.case, options.tokenizer = ["model"], options.tokenizer or options.model
    if options.measure:
        from benchmarks.train_methods import measure

        result = measure(
            _case(options.case[0], options),
            options.measure,
            options.work,
            steps=options.steps,
            max_length=options.max_length,
        )
        print(json.dumps(result))
    else:
        for case in options.case:
            with tempfile.TemporaryDirectory() as folder:
                _compare(case, options, Path(folder))


def _case(name: str, options: argparse.Namespace) -> Case:
    from benchmarks.train_cases import CASES, pretrained_case

    return pretrained_case(options.model, lora=options.lora) if options.model else CASES[name]


def _compare(case: str, options: argparse.Namespace, folder: Path) -> None:
    from benchmarks.train_cases import draw_sample, tokenize_export
    from benchmarks.train_methods import METHODS

    chosen = _case(case, options)
    tokenizer = options.tokenizer if chosen.own_tokenizer else None
    tokenize_export(
        folder, export=options.export, tokenizer=tokenizer, pretrained=options.model, max_length=options.max_length
    )
    sample = draw_sample(folder, rows=options.rows, max_length=options.max_length)
    flops = _child(case, "matmul", options, folder)["flops"]
    print(f"\n({case}) {chosen.title}: {_shape(chosen.options)}, vocabulary {chosen.vocabulary:,}")
    print(
        f"{sample.rows} rows of {sample.export_rows:,}, {sample.tokens:,} tokens, {sample.targets:,} trained on; "
        f"{sample.distinct_tokens:,} distinct ({sample.tokens / sample.distinct_tokens:.2f} times less; "
        f"whole export {sample.sharing:.2f}); matrix product {flops / 1e9:.0f} Gflop/s with {options.threads} threads\n"
    )
    print(
        "| method | rows/s | rows/CPU s | peak MiB | page faults | positions computed | share of rate | loss of each step |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    results: dict[str, dict[str, Any]] = {}
    for method in options.methods or METHODS:
        result = results[method] = _child(case, method, options, folder)
        best, cpu = min(result["seconds"]), min(result["cpu_seconds"])
        cells = [
            method,
            f"{sample.rows / best:.2f}",
            f"{sample.rows / cpu:.2f}",
            f"{result['peak_mib']:,.0f}",
            f"{result['page_faults']:,}",
            f"{result['computed']:,}",
            f"{result['operations'] / best / flops:.0%}",
            ", ".join(f"{loss:.5f}" for loss in result["losses"]),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)
    _conclude(results)


def _conclude(results: dict[str, dict[str, Any]]) -> None:
    """Compare prefix_tree with the fastest and the most memory-efficient other method, by wall-clock and CPU time."""
    trees = {name: result for name, result in results.items() if name.startswith(TREE)}
    others = {name: result for name, result in results.items() if not name.startswith(OURS)}
    if not others:
        return
    leanest = min(others, key=lambda name: others[name]["peak_mib"])
    for name, tree in trees.items():
        for clock, words in (("seconds", "on the clock"), ("cpu_seconds", "by processor time")):
            best = min(others, key=lambda name: min(others[name][clock]))
            times = min(others[best][clock]) / min(tree[clock])
            memory, least = (tree["peak_mib"] / others[other]["peak_mib"] for other in (best, leanest))
            print(
                f"\n{name}, {words}: {times:.1f} times the best other ({best}), with {memory:.2f} of its memory and "
                f"{least:.2f} of the leanest's ({leanest})."
            )


def _shape(options: dict[str, Any]) -> str:
    return f"{options['num_hidden_layers']} layers of {options['hidden_size']}"


def _child(case: str, method: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.train", "--measure", method, "--work", str(folder)]
    command += ["--steps", str(options.steps), "--max-length", str(options.max_length)]
    command += ["--model", options.model] if options.model else ["--case", case]
    command += ["--lora"] if options.lora else []
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    environment |= LEAN_MALLOC if method.endswith(RECOMPUTED) else {}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{method} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
