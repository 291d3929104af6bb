"""Devices of this machine."""

from __future__ import annotations

import os
from pathlib import Path


def device_type() -> str:
    """`cuda` on a machine with NVIDIA GPUs, else `cpu`; $DS_ACCELERATOR takes precedence. Does not import torch."""
    return os.environ.get("DS_ACCELERATOR") or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")


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
