"""The ranks of a run: who is who, and what they tell each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

from fim_core.device import device_type
from fim_core.training.job import RENDEZVOUS_FILE

# Rank 0 plans packs and exports models while the others wait.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


def join_ranks() -> Ranks:
    """Join the other ranks that the environment names: RANK, LOCAL_RANK, WORLD_SIZE, and the file (RENDEZVOUS_FILE) or the
    host (MASTER_ADDR, MASTER_PORT) through which they meet."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device_type() == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        # On a CPU DeepSpeed compiles an all-reduce through shared memory when ranks meet, which takes most of a
        # minute on a new machine, and uses it for inference only. It looks here whether it may.
        deepspeed.ops.__compatible_ops__ = {}
        # Starting DeepSpeed's optimizers imports one that is decorated with torch.compile, and with that the whole
        # compiler, for seconds. Nothing is compiled on a CPU here.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    if meeting := os.environ.get(RENDEZVOUS_FILE):
        # A store, not a file:// address: torch does not decode what a path with a space or a # becomes in one.
        store = dist.FileStore(meeting, world_size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    deepspeed.init_distributed(backend, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT, verbose=False)
    return Ranks(rank, world_size, device)


def leave_ranks() -> None:
    """Take leave of the other ranks, once all have come this far."""
    dist.barrier()
    dist.destroy_process_group()
