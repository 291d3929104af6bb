"""Hardware utilization: peak floating-point rates and peak memory."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

# Dense tensor-core rates from NVIDIA's data sheets, in floating-point operations a second, bf16 with fp32 sums (fp16
# where a card has no bf16). The first key that is part of the device's name counts, so longer keys come first.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class Peak:
    """Peak rate of one rank, by which model-FLOPs utilization is computed.

    Attributes:
        flops: floating-point operations per second.
        source: origin of the figure, for people.
    """

    flops: float
    source: str


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak | None:
    """The GPU's peak: from data sheets for known cards in half precision, else from a measured matrix product.

    None on a CPU, whose rate depends on what else runs on the machine: utilization would be meaningless and could
    exceed 1.
    """
    if device.type != "cuda":
        return None
    if dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for part, flops in PEAK_FLOPS.items():
            if part in name:
                return Peak(flops, f"data sheet of {part}")
    numbers = str(dtype).removeprefix("torch.")
    return Peak(measure_matmul(device, dtype), f"measured matrix product, {device.type}, {numbers}")


def measure_matmul(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Floating-point operations per second of the fastest of a few square matrix products."""
    size = 512 if device.type == "cpu" else 8192
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):
        began = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: on the GPU, or main memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024
