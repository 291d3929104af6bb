"""Rendezvous of the ranks of a run, through a file of its folder."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from fim_core.atomic import replacing
from fim_core.training.job import RENDEZVOUS_HOST

_POLL_SECONDS = 0.1


def meet(file: Path, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """The store through which the ranks find each other.

    On one machine the file itself is the store. On several, rank 0 serves a store at a port that the kernel chooses, so
    that no other run on its machine has it, and writes the address to the file. Its machine is named by RENDEZVOUS_HOST.

    Raises:
        TimeoutError: rank 0 has not written the address.
    """
    host = os.environ.get(RENDEZVOUS_HOST)
    if host is None:
        return dist.FileStore(str(file), world_size)
    if rank == 0:
        store = dist.TCPStore(host, 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        with replacing(file) as scratch:
            scratch.write_text(str(store.port), encoding="utf-8")
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    # Listed, as a network file system may remember for half a minute that a file was missing when it was opened.
    while file.name not in os.listdir(file.parent):
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 has not written {file}")
        time.sleep(_POLL_SECONDS)
    port = int(file.read_text(encoding="utf-8"))
    return dist.TCPStore(host, port, world_size, is_master=False, timeout=timeout, wait_for_workers=False)
