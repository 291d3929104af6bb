"""Benchmark of pack attention on a CPU: segment-wise attention against one dense mask.

    python -m benchmarks.attention [--tokens N …] [--heads H] [--key-heads K] [--width D] [--repeats R]

The pack is a tree as from an editor's export: a system prompt, a few worksheets below it, and rows below those. Times are
processor seconds of one layer's forward and backward pass in float32, the minimum over several runs, printed with the
largest difference of outputs and gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from fim_core.modeling.attention import attend_mask, attend_segments
from fim_core.modeling.flops import attended_pairs
from fim_core.packing.layout import Layout, forest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[3_000, 11_000])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--key-heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    print("| tokens | segments | pairs seen | segments s | dense mask s | times faster | largest difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for tokens in options.tokens:
        layout = worksheets(tokens)
        operands = [
            torch.randn(1, layout.tokens, heads, options.width, requires_grad=True)
            for heads in (options.heads, options.key_heads, options.key_heads)
        ]
        ours, found = measure(attend_segments, operands, layout, options.repeats)
        dense, wanted = measure(attend_mask, operands, layout, options.repeats)
        difference = max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))
        seen = attended_pairs(layout) / layout.tokens**2
        print(
            f"| {layout.tokens:,} | {len(layout.segments)} | {seen:.1%} | {ours:.3f} | {dense:.3f} "
            f"| {dense / ours:.1f} | {difference:.1e} |"
        )


def worksheets(tokens: int, *, system: int = 300, worksheet: int = 600, row: int = 70, rows: int = 8) -> Layout:
    """A pack of about `tokens` tokens: below a system prompt worksheets of `rows` rows each."""
    lengths, shared, used = [], [], system
    while used < tokens:
        for place in range(rows):
            lengths.append(system + worksheet + row)
            shared.append(system + worksheet if place else system if len(lengths) > 1 else 0)
        used += worksheet + rows * row
    return forest(np.array(lengths), np.array(shared))[0]


def measure(
    attend: Callable[..., torch.Tensor], operands: list[torch.Tensor], layout: Layout, repeats: int
) -> tuple[float, list[torch.Tensor]]:
    """Processor seconds of a forward and backward pass, and the output and gradients."""
    best, results = float("inf"), []
    for _ in range(repeats):
        start = time.process_time()
        query, key, value = (operand.transpose(1, 2) for operand in operands)
        output = attend(query, key, value, layout, scale=query.shape[-1] ** -0.5)
        results = [output.detach(), *torch.autograd.grad(output.sum(), operands)]
        best = min(best, time.process_time() - start)
    return best, results


if __name__ == "__main__":
    main()
