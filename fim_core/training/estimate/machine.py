"""The device that a rank is estimated for."""

from __future__ import annotations

import re
from dataclasses import dataclass

import psutil
import torch

from fim_core.device import returned_from
from fim_core.errors import FimError
from fim_core.training.utilization import PEAK_FLOPS

GIB = 2**30
CUDA_CONTEXT = GIB
"""Assumed memory of the CUDA context, its libraries and NCCL on a GPU. Not yet compared with a GPU."""

ALLOCATOR_SHARE = 0.05
"""Assumed share of a GPU's memory that the caching allocator cannot use because of fragmentation. Not yet compared with a
GPU."""

_BEFORE_AMPERE = frozenset({"V100", "T4"})
"""GPUs without FlashAttention 2."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|G|MB|MiB|M)?", re.IGNORECASE)
_UNITS = {"gb": 10**9, "gib": GIB, "g": GIB, "mb": 10**6, "mib": 2**20, "m": 2**20}


@dataclass(frozen=True)
class Machine:
    """A device and its memory.

    Attributes:
        device: cuda, which need not exist here, or cpu.
        memory: bytes of a rank.
        overhead: bytes of it that are used besides tensors.
        overhead_source: what they are, for people.
        name: for people.
        flops: peak rate of a rank in floating-point operations per second; None if unknown.
        capability: CUDA compute capability of a GPU.
        returned_from: bytes of a block from which the allocator returns it when it is freed. Smaller ones stay in its heap,
            which is as large as all of them together were at their peak.
    """

    device: torch.device
    memory: int
    overhead: int
    overhead_source: str
    name: str
    flops: float | None
    capability: tuple[int, int] | None = None
    returned_from: int = 0

    @classmethod
    def gpu(cls, name: str, memory: int) -> Machine:
        """A GPU of a kind of PEAK_FLOPS.

        Raises:
            FimError: there is no such kind.
        """
        known = {kind.lower(): kind for kind in PEAK_FLOPS}
        if name.lower() not in known:
            raise FimError(f"--gpu {name} is unknown. Give one of {', '.join(PEAK_FLOPS)}.")
        kind = known[name.lower()]
        overhead = CUDA_CONTEXT + int(ALLOCATOR_SHARE * memory)
        source = f"assumed: {CUDA_CONTEXT / GIB:g} GiB of CUDA context, {ALLOCATOR_SHARE:.0%} lost to fragmentation"
        name = f"{kind}, {in_gib(memory)}"
        capability = (7, 0) if kind in _BEFORE_AMPERE else (8, 0)
        return cls(torch.device("cuda"), memory, overhead, source, name, PEAK_FLOPS[kind], capability)

    @classmethod
    def of_device(cls, device: torch.device) -> Machine:
        """A GPU of this machine, with the memory that is free now."""
        free, _ = torch.cuda.mem_get_info(device)
        overhead = int(ALLOCATOR_SHARE * free)
        source = f"assumed: {ALLOCATOR_SHARE:.0%} lost to fragmentation"
        name = torch.cuda.get_device_name(device)
        return cls(device, free, overhead, source, name, None, torch.cuda.get_device_capability(device))

    @classmethod
    def this_cpu(cls, ranks: int) -> Machine:
        """This machine's CPU and main memory, which its ranks share."""
        own = psutil.Process().memory_info().rss
        memory = psutil.virtual_memory().total // ranks
        source = "measured: this process, which has loaded the same libraries"
        name = f"this CPU, {in_gib(memory)} a rank"
        return cls(torch.device("cpu"), memory, own, source, name, None, returned_from=returned_from())


def parse_memory(text: str) -> int:
    """Bytes of `80GB` (10^9), `80GiB` (2^30), or `80`, in GB.

    A GPU that is sold with 80 GB has 79 to 80 GiB; the smaller reading is the safe one.

    Raises:
        FimError: it is none of these, or nothing would be left for a model.
    """
    if (match := _SIZE.fullmatch(text.strip())) is None:
        raise FimError(f"--gpu-memory {text!r} is not a size. Give, for example, 80GB or 80GiB.")
    size = int(float(match[1]) * _UNITS[(match[2] or "GB").lower()])
    if size <= CUDA_CONTEXT:
        raise FimError(f"--gpu-memory {text!r}: a GPU needs more than the {in_gib(CUDA_CONTEXT)} of its own context.")
    return size


def in_gib(size: float) -> str:
    """A size for people: in GiB, or in MiB below 0.1 GiB."""
    return f"{size / GIB:,.1f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:,.0f} MiB"
