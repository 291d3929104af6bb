"""Process group of the ranks and its collectives."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

from fim_core.device import device_type
from fim_core.errors import FimError
from fim_core.modeling.sequence_parallel import SequenceGroup
from fim_core.training.job import RENDEZVOUS_FILE
from fim_core.training.rendezvous import meet

# Rank 0 plans packs and exports models while the others wait.
COLLECTIVE_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Ranks:
    """This rank and the process groups that it belongs to.

    Attributes:
        rank, world_size: among all ranks.
        device: of this rank.
        sequence_group: the ranks that compute the same packs; None if each rank computes packs of its own.
    """

    rank: int
    world_size: int
    device: torch.device
    sequence_group: SequenceGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the shared files."""
        return self.rank == 0

    @property
    def sequence_parallel_size(self) -> int:
        """Number of ranks that compute the same packs."""
        return 1 if self.sequence_group is None else self.sequence_group.size

    @property
    def data_ranks(self) -> int:
        """Number of groups of ranks that compute different packs."""
        return self.world_size // self.sequence_parallel_size

    @property
    def data_rank(self) -> int:
        """Index of this rank's group among them."""
        return self.rank // self.sequence_parallel_size

    @property
    def counts_batch(self) -> bool:
        """Whether this rank counts its group's batches in sums over all ranks."""
        return self.sequence_group is None or self.sequence_group.rank == 0

    def divide_sequences(self, size: int) -> Ranks:
        """Form groups of `size` consecutive ranks that divide each pack among them; to be called on all ranks.

        Raises:
            FimError: the number of ranks is not a multiple of `size`.
        """
        if size == 1:
            return self
        if self.world_size % size:
            raise FimError(
                f"sequence_parallel_size is {size}, but the run has {self.world_size} ranks, which is not a multiple of it. "
                "Set launcher.num_processes to a multiple, or change sequence_parallel_size."
            )
        groups = [dist.new_group(range(first, first + size)) for first in range(0, self.world_size, size)]
        group = SequenceGroup(size, self.rank % size, groups[self.rank // size])
        return replace(self, sequence_group=group)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()


def join_ranks() -> Ranks:
    """Join the process group that the environment describes.

    RANK, LOCAL_RANK and WORLD_SIZE identify this rank; the ranks meet through the file RENDEZVOUS_FILE (see `meet`).
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if device_type() == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        # On a CPU DeepSpeed compiles an all-reduce through shared memory when ranks meet, which takes most of a
        # minute on a new machine, and uses it for inference only. It compiles only operators that are listed here.
        deepspeed.ops.__compatible_ops__ = {}
        # DeepSpeed's optimizers import one that is decorated with torch.compile, which loads the whole compiler and takes
        # seconds. Nothing is compiled on a CPU here.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # A store instead of a file:// URL, as torch does not decode escaped characters (space, #) in its path.
    store = meet(Path(os.environ[RENDEZVOUS_FILE]), rank, world_size, COLLECTIVE_TIMEOUT)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)
    deepspeed.init_distributed(backend, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT, verbose=False)
    return Ranks(rank, world_size, device)


def leave_ranks() -> None:
    """Leave the process group once all ranks have reached this call."""
    dist.barrier()
    dist.destroy_process_group()
