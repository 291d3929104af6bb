"""Benchmark of packing: fill of packs, tokens saved by sharing, and time to plan an epoch.

    python -m benchmarks.packing [--rows N] [--context-rows N] [--batch-rows N]

First, the fill of flat packs over all rows, with log-normal lengths (close to those of real prompts) capped at the length
of a pack. Then, whole epochs in batches, with rows that share parts of their contexts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from fim_core.packing import IGNORE_INDEX, PackPlan, Rows, plan_packs
from fim_core.packing.bins import best_fit_decreasing
from fim_core.packing.plan import Strategy
from fim_core.packing.rows import FlatColumn

MEDIANS = (1_800, 6_000)
LIMITS = (32_768, 262_144)
STRATEGIES: tuple[Strategy, ...] = ("prefix_tree", "flat", "none")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--sigma", type=float, default=0.8, help="standard deviation of the lengths' logarithm")
    parser.add_argument("--context-rows", type=int, default=20, help="rows of a context")
    parser.add_argument("--batch-rows", type=int, default=16)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    print("| rows | median length | mean | longest | pack_length | packs | fill | least possible packs | seconds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for median in MEDIANS:
        for limit in LIMITS:
            lengths = draw_lengths(options.rows, median, options.sigma, limit)
            began = time.perf_counter()
            packs = len(best_fit_decreasing(lengths, limit))
            seconds = time.perf_counter() - began
            least = -(-int(lengths.sum()) // limit)
            print(
                f"| {len(lengths):,} | {np.median(lengths):,.0f} | {lengths.mean():,.0f} | {lengths.max():,} "
                f"| {limit:,} | {packs:,} | {lengths.sum() / (packs * limit):.2%} | {least:,} "
                f"| {seconds:.2f} |"
            )
    rows = rows_of_contexts(options.rows, options.context_rows)
    began = time.perf_counter()
    assert len(rows.prompt_order.order) == len(rows)
    print(f"\n{len(rows):,} rows of {rows.lengths.mean():.0f} tokens sorted in {time.perf_counter() - began:.1f} s\n")
    print("| packing | ranks | rows a step | packs a step | tokens / distinct | seconds to plan, write, read |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for strategy in STRATEGIES:
        for ranks in options.ranks:
            print(epoch(rows, strategy, ranks, options.batch_rows), flush=True)


def epoch(rows: Rows, strategy: Strategy, ranks: int, batch_rows: int) -> str:
    """Plan one epoch, store and read it; a line of the table."""
    began = time.perf_counter()
    plan = plan_packs(rows, strategy=strategy, pack_length=8192, batch_rows=batch_rows, ranks=ranks)
    planned = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        plan.write(Path(folder) / "plan.parquet")
        written = time.perf_counter()
        PackPlan.read(Path(folder) / "plan.parquet")
    read = time.perf_counter()
    stats = plan.stats
    return (
        f"| {strategy} | {ranks} | {stats.rows_per_batch:.1f} | {stats.packs_per_batch:.1f} "
        f"| {stats.tokens / stats.distinct_tokens:.2f} "
        f"| {planned - began:.1f}, {written - planned:.1f}, {read - written:.1f} |"
    )


def draw_lengths(rows: int, median: int, sigma: float, limit: int) -> np.ndarray:
    """Log-normal lengths from 1 to `limit`, int64 [rows]."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), sigma, rows)
    return np.clip(np.rint(drawn), 1, limit).astype(np.int64)


def rows_of_contexts(rows: int, context_rows: int) -> Rows:
    """Rows of 400 tokens: a system prompt of 100, up to 250 of a context shared with other rows, the rest unshared."""
    rng = np.random.default_rng(0)
    context = rng.permutation(np.arange(rows) // context_rows)
    tokens = np.empty((rows, 400), np.int32)
    tokens[:, :100] = np.arange(100)
    # A token of a context follows from the context and the position.
    tokens[:, 100:350] = (context[:, None] * 7919 + np.arange(250) * 104_729) % 30_000
    tokens[:, 350:] = rng.integers(0, 30_000, (rows, 50), dtype=np.int32)
    parted = rng.integers(100, 350, rows)
    own = np.arange(400) >= parted[:, None]
    tokens[own] = rng.integers(0, 30_000, int(own.sum()), dtype=np.int32)
    labels = np.where(np.arange(400) < 390, IGNORE_INDEX, tokens).astype(np.int32)
    offsets = np.arange(rows + 1, dtype=np.int64) * 400
    names = [f"row-{row}" for row in range(rows)]
    return Rows(FlatColumn((tokens.ravel(),)), FlatColumn((labels.ravel(),)), offsets, names)


if __name__ == "__main__":
    main()
