"""Benchmark of training on one GPU: our three packings, and TRL's SFTTrainer in its fastest settings.

    python -m benchmarks.train_gpu [--rows N] [--steps N] [--max-length N] [--methods NAME …]

The rows are the demo's, with a tokenizer trained on them; the model has 137 million parameters from random weights. All
methods take the same rows in each optimizer step, so that their losses agree up to the rounding of bf16, and each runs in
a process of its own. Ours have weights in bf16 with a copy and the optimizer's state in float32, as `fim train` does by
default. TRL packs with best-fit decreasing (padding-free), with FlashAttention 2 where flash-attn is installed and else
FlexAttention, with Liger's kernels where they are installed, once with everything in bf16 and once with weights and state
in float32 (autocast).

Tokens per second are those of all rows in the fastest step, whatever was computed; the first steps compile kernels. Memory
is the peak of torch's tensors. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from benchmarks.train_cases import TRAINED_VOCABULARY, Case, draw_sample, read_sample, tokenize_export
from benchmarks.train_methods import Method, Result, measure, ours, trl

CASES = {
    "full": Case(
        "137 million parameters",
        {
            "hidden_size": 768,
            "intermediate_size": 2304,
            "num_hidden_layers": 16,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
        },
        32_768,
        False,
        dtype="bf16",
    ),
    "tiny": Case(
        "a test of this file on a CPU",
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        1024,
        False,
    ),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="full", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=128, help="minimum number of rows; whole packs are drawn")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps; the fastest counts")
    parser.add_argument("--max-length", type=int, default=8192, help="maximum tokens of a pack")
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        result = measure(
            CASES[options.case],
            options.measure,
            options.work,
            steps=options.steps,
            max_length=options.max_length,
            methods=methods(),
        )
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = prepare(Path(place), rows=options.rows, max_length=options.max_length)
        for number, method in enumerate(options.methods or methods()):
            row = cells(method, measure_apart(options.case, method, folder, options.steps, options.max_length), folder)
            if not number:
                print(f"| {' | '.join(row)} |\n| --- |{' ---: |' * (len(row) - 1)}")
            print(f"| {' | '.join(row.values())} |", flush=True)


def methods() -> dict[str, Method]:
    """Methods by name, ours first; TRL's where it is installed."""
    found: dict[str, Method] = {
        "ours, prefix_tree": partial(ours, "prefix_tree"),
        "ours, flat": partial(ours, "flat"),
        "ours, none": partial(ours, "none"),
    }
    if find_spec("trl") is None:
        return found
    packed = {"batch_size": 1, "packing": True}
    liger = find_spec("liger_kernel") is not None
    fused = "flash_attention_2" if find_spec("flash_attn") else "flex_attention"
    name = f"TRL, packed (bfd), {fused}{', Liger' if liger else ''}"
    fast = partial(trl, {**packed, "use_liger_kernel": liger}, attention=fused)
    return found | {
        f"{name}, all in bf16": fast,
        f"{name}, autocast": partial(fast, weights="fp32"),
        "TRL, packed (bfd), sdpa, all in bf16": partial(trl, packed),
    }


def prepare(folder: Path, *, rows: int, max_length: int, demo_rows: int = 3000) -> Path:
    """Tokenize the demo and draw the sample of rows into a folder, which is returned."""
    tokenize_export(folder, max_length=2048, demo_rows=demo_rows, vocabulary=min(TRAINED_VOCABULARY, 2 * demo_rows))
    draw_sample(folder, rows=rows, max_length=max_length)
    return folder


def measure_apart(case: str, method: str, folder: Path, steps: int, max_length: int) -> Result:
    """Measure in a process of its own, on the first visible GPU.

    Raises:
        RuntimeError: the process failed; with the end of its output.
    """
    command = [sys.executable, "-m", "benchmarks.train_gpu", "--measure", method, "--work", str(folder)]
    command += ["--case", case, "--steps", str(steps), "--max-length", str(max_length)]
    # TRL refuses to train in one process that sees several cards.
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": first, "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{method} failed:\n{done.stderr[-3000:]}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def cells(method: str, result: Result, folder: Path) -> dict[str, str]:
    """The row of a method in the table."""
    seconds = min(result["seconds"])
    return {
        "method": method,
        "tokens/s": f"{read_sample(folder).tokens / seconds:,.0f}",
        "peak MiB": f"{result['peak_mib']:,.0f}",
        "positions computed": f"{result['computed']:,}",
        "Tflop/s": f"{result['operations'] / seconds / 1e12:.1f}",
        "loss of each step": ", ".join(f"{loss:.4f}" for loss in result["losses"]),
    }


if __name__ == "__main__":
    main()
