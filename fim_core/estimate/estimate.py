"""Whether an experiment fits on its devices, and how long it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from fim_core.config import Experiment
from fim_core.estimate.changes import Change, Choices, smallest_change
from fim_core.estimate.machine import Machine
from fim_core.estimate.memory import Memory, Networks, RankMemory
from fim_core.estimate.workload import Workload, assumed_workload, training_rows, workload_of_rows
from fim_core.modeling.flops import training_cost
from fim_core.modeling.support import supports_prefix_tree

ROW_STEP = 256
"""Tokens to which the longest row is rounded down."""

LONGEST = 2**22
"""The longest row that is considered, in tokens."""


@dataclass(frozen=True)
class Estimate:
    """An estimate for one rank.

    Attributes:
        memory: at the peak of a step with the largest pack.
        longest_row: the longest row that fits, alone in its pack, in tokens; 0 if none does.
        change: the smallest change that makes the experiment fit; None if it fits, or if none does.
        hours: of training; None if the tokens or the rate of the device are unknown.
    """

    experiment: Experiment
    machine: Machine
    ranks: int
    workload: Workload
    memory: Memory
    longest_row: int
    change: Change | None
    hours: float | None

    @property
    def fits(self) -> bool:
        """Whether the largest pack fits."""
        return self.memory.total <= self.machine.memory


@dataclass(frozen=True)
class Estimator:
    """Makes an estimate.

    Attributes:
        utilization: assumed share of the peak rate.
        rows, tokens: of an epoch, instead of those of the tokenized_dataset.
    """

    experiment: Experiment
    machine: Machine
    ranks: int
    utilization: float
    rows: int | None = None
    tokens: int | None = None

    @cached_property
    def networks(self) -> Networks:
        """Simulations, shared by all variants of the experiment."""
        return Networks(self.machine)

    def estimate(self) -> Estimate:
        """The estimate.

        Raises:
            FimError: the model cannot be found or built, or cannot run without data.
        """
        workload = self.workload
        memory = self._memory(self.experiment).of(workload.pack)
        longest = self.longest_row(self.experiment)
        change = None if memory.total <= self.machine.memory else self._change(longest)
        return Estimate(
            self.experiment, self.machine, self.ranks, workload, memory, longest, change, self._hours(workload)
        )

    @cached_property
    def workload(self) -> Workload:
        """The rows of the tokenized_dataset if it exists and no others are given, else assumed ones."""
        network = self.networks.network(self.experiment)
        supported, _ = supports_prefix_tree(network.config)
        strategy = self.experiment.data.packing
        if strategy == "prefix_tree" and not supported:
            strategy = "flat"
        cost, data_ranks = training_cost(network), self.ranks // self.experiment.sequence_parallel_size
        rows = training_rows(self.experiment) if self.rows is None and self.tokens is None else None
        if rows is not None and len(rows):
            return workload_of_rows(self.experiment, rows, strategy=strategy, data_ranks=data_ranks, cost=cost)
        return assumed_workload(
            self.experiment, strategy=strategy, data_ranks=data_ranks, cost=cost, rows=self.rows, tokens=self.tokens
        )

    def longest_row(self, experiment: Experiment) -> int:
        """The longest row that fits alone in its pack, rounded down to ROW_STEP tokens."""
        of = self._memory(experiment).of
        return longest_that_fits(lambda tokens: of(self.workload.row(tokens)).total, self.machine.memory)

    def _memory(self, experiment: Experiment) -> RankMemory:
        return RankMemory(experiment, self.networks, ranks=self.ranks, several_packs=self.workload.several_packs)

    def _change(self, longest: int) -> Change | None:
        """The smallest change; `data.pack_length` first, which costs no accuracy and little time."""
        experiment, row = self.experiment, self.workload.longest_row
        if row <= longest and row < self.workload.pack.tokens:
            data = experiment.data.model_copy(update={"pack_length": longest})
            return Change({"data.pack_length": str(longest)}, experiment.model_copy(update={"data": data}))
        pack = self.workload.pack
        config = self.networks.network(experiment).config
        supported, _ = supports_prefix_tree(config)
        choices = Choices(
            ranks=self.ranks,
            heads=config.get_text_config().num_attention_heads if supported else 1,
            on_gpu=self.machine.device.type == "cuda",
            sharded=self._memory(experiment).stage > 0,
        )
        return smallest_change(
            experiment, choices, lambda changed: self._memory(changed).of(pack).total <= self.machine.memory
        )

    def _hours(self, workload: Workload) -> float | None:
        if workload.operations is None or self.machine.flops is None:
            return None
        epochs = self.experiment.epochs or 1
        return epochs * workload.operations / (self.ranks * self.machine.flops * self.utilization) / 3600


def longest_that_fits(size: Callable[[int], int], limit: int) -> int:
    """The most tokens, a multiple of ROW_STEP, whose size is at most `limit`, up to LONGEST; 0 if there is none.

    Args:
        size: bytes of a number of tokens; convex, and for long rows about affine, so a chord leads close to the answer.
    """
    known: dict[int, int] = {}

    def size_of(steps: int) -> int:
        if steps not in known:
            known[steps] = size(steps * ROW_STEP)
        return known[steps]

    low, high = 1, 64
    if size_of(low) > limit:
        return 0
    while size_of(high) <= limit:
        if high * ROW_STEP >= LONGEST:
            return LONGEST
        slope = (size_of(high) - size_of(low)) / (high - low)
        beyond = high + int((limit - size_of(high)) / slope) + 1 if slope > 0 else 2 * high
        low, high = high, min(max(beyond, high + 1), LONGEST // ROW_STEP)
    while high - low > 1:
        share = (limit - size_of(low)) / (size_of(high) - size_of(low))
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        if size_of(middle) <= limit:
            low = middle
        else:
            high = middle
    return low * ROW_STEP
