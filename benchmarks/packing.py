"""How full flat packs get, and how long planning them takes.

    python -m benchmarks.packing [--rows N] [--sigma S]

Row lengths are log-normal, as real prompts' lengths nearly are, cut off at the longest that a pack takes. Only lengths
matter here, so the rows have no tokens of their own.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from fim_core.packing import Rows, plan_packs
from fim_core.packing.rows import FlatColumn

MEDIANS = (1_800, 6_000)
LIMITS = (32_768, 262_144)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--sigma", type=float, default=0.8, help="standard deviation of the lengths' logarithm")
    options = parser.parse_args()
    print("| rows | median length | mean | longest | max_length | packs | fill | least possible packs | seconds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for median in MEDIANS:
        for limit in LIMITS:
            lengths = draw_lengths(options.rows, median, options.sigma, limit)
            rows = rows_of(lengths)
            began = time.perf_counter()
            stats = plan_packs(rows, strategy="flat", max_length=limit).stats
            seconds = time.perf_counter() - began
            least = -(-int(lengths.sum()) // limit)
            print(
                f"| {len(lengths):,} | {np.median(lengths):,.0f} | {lengths.mean():,.0f} | {lengths.max():,} "
                f"| {limit:,} | {stats.packs:,} | {stats.fill:.2%} | {least:,} | {seconds:.2f} |"
            )


def draw_lengths(rows: int, median: int, sigma: float, limit: int) -> np.ndarray:
    """Log-normal lengths from 1 to `limit`, int64 [rows]."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), sigma, rows)
    return np.clip(np.rint(drawn), 1, limit).astype(np.int64)


def rows_of(lengths: np.ndarray) -> Rows:
    """Rows of these lengths; all their tokens are one zero in memory."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    zeros = FlatColumn((np.broadcast_to(np.int32(0), int(offsets[-1])),))
    return Rows(zeros, zeros, offsets, [f"row-{row}" for row in range(len(lengths))])


if __name__ == "__main__":
    main()
