"""Two requests at once: one after the other, as `fim serve` completes them, or both in shared decoding steps.

    python -m benchmarks.shared_steps CONFIG [--checkpoint FOLDER] [--pairs N]

Each pair are the prompts of two held-out rows with nothing cached. Both ways alternate, so that other work on the machine slows
both.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.held_out import held_out_prompts
from fim_core.cli.model import chosen_checkpoint
from fim_core.config import load_experiment
from fim_core.evaluation.predictors import Predictor
from fim_core.inference.shared_decoding import DecodedRow, decode

WAYS = {"one after the other": 1, "shared steps": 2}
"""Rows that are decoded together."""


def main(
    config: Annotated[Path, typer.Argument(help="Experiment with current data and a checkpoint.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Another checkpoint.")] = None,
    pairs: int = 60,
    max_tokens: int = 48,
    longest: Annotated[int, typer.Option(help="Longest prompt, in tokens; longer ones are skipped.")] = 700,
) -> None:
    """Print the milliseconds after which the first and the second completion end."""
    predictor = Predictor.load(chosen_checkpoint(checkpoint, config))
    _, prompts = held_out_prompts(load_experiment(config), predictor, None)
    prompts = [prompt for prompt in prompts if 0 < len(prompt) <= longest]
    random.Random(1).shuffle(prompts)
    ends: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for number in range(min(pairs, len(prompts) // 2)):
        pair = prompts[2 * number : 2 * number + 2]
        for name in sorted(WAYS, reverse=number % 2 == 0):
            ends[name].append(complete(predictor, pair, WAYS[name], max_tokens))
    print("| | first | second | mean | p95 of both |\n| --- | ---: | ---: | ---: | ---: |")
    for name, found in ends.items():
        times = 1000 * np.array(found)
        first, second = times.mean(axis=0)
        print(f"| {name} | {first:.0f} | {second:.0f} | {times.mean():.0f} | {np.percentile(times, 95):.0f} |")


@torch.inference_mode()
def complete(predictor: Predictor, prompts: Sequence[list[int]], together: int, max_tokens: int) -> list[float]:
    """Complete prompts; returns the seconds after which each is finished, sorted."""
    start, ends = time.perf_counter(), []
    rows = [DecodedRow(prompt, on_done=lambda: ends.append(time.perf_counter() - start)) for prompt in sorted(prompts)]
    decode(predictor.model, rows, stop_ids=predictor.stop_ids, max_new_tokens=max_tokens, batch_size=together)
    return ends


if __name__ == "__main__":
    typer.run(main)
