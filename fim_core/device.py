"""Devices of this machine."""

from __future__ import annotations

import os
from pathlib import Path

from fim_core.errors import FimError


def device_type() -> str:
    """`cuda` on a machine with NVIDIA GPUs, else `cpu`; $DS_ACCELERATOR takes precedence. Does not import torch."""
    return os.environ.get("DS_ACCELERATOR") or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")


RETURNED_FROM = "MALLOC_MMAP_THRESHOLD_"
"""Variable of glibc: bytes of a block from which it returns memory as soon as it is freed."""


def returned_from() -> int:
    """Bytes of a block from which ranks on a CPU return it when it is freed; $MALLOC_MMAP_THRESHOLD_ takes precedence.

    By default glibc keeps freed blocks of up to 32 MiB, which the activations of a step fragment: with recomputed activations a
    rank took 1.6 times the memory that it needed. Returning blocks from 4 MiB on prevents most of that at no measurable cost;
    from 1 MiB on, it took a fifth more processor time (see benchmarks/README.md).

    Raises:
        FimError: the variable is not a number that glibc reads.
    """
    text = os.environ.get(RETURNED_FROM) or str(4 * 2**20)
    try:
        return int(text, 0)
    except ValueError:
        raise FimError(f"${RETURNED_FROM} is {text!r}. Set it to a number of bytes, or remove it.") from None


def gpus() -> int:
    """Number of NVIDIA GPUs that torch sees, at least 1."""
    import torch

    return max(1, torch.cuda.device_count())


def device_name() -> str:
    """The device on which models complete, for people: `NVIDIA H200`, or `CPU with 2 threads`."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU with {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
