"""Whether an experiment fits on its devices, and how long it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PretrainedConfig

from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.modeling.flops import training_cost
from fim_core.modeling.support import PACKED_MODEL_TYPES
from fim_core.packing import Rows
from fim_core.packing.cost import Cost
from fim_core.packing.plan import Strategy
from fim_core.training.estimate.changes import Change, Choices, smallest_change
from fim_core.training.estimate.machine import Machine, in_gib
from fim_core.training.estimate.rank_memory import Memory, Networks, RankMemory
from fim_core.training.estimate.workload import Workload, assumed_workload, workload_of_rows
from fim_core.training.model import choose_packing

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
    """Makes estimates of one experiment.

    Attributes:
        ranks: number of ranks.
        tokenizer: folder of the tokenizer, once it exists.
    """

    experiment: Experiment
    machine: Machine
    ranks: int
    tokenizer: Path | None = None

    @cached_property
    def networks(self) -> Networks:
        """Simulations, shared by all variants of the experiment."""
        return Networks(self.machine, self.tokenizer)

    def estimate(self, workload: Workload, utilization: float) -> Estimate:
        """The estimate for a workload.

        Args:
            utilization: assumed share of the peak rate.

        Raises:
            FimError: the model cannot be found or built, or cannot run without data.
        """
        memory = self._memory(self.experiment, workload).of(workload.pack)
        longest = self.longest_row(workload)
        change = None if memory.total <= self.machine.memory else self._change(workload, longest)
        hours = self._hours(workload, utilization)
        return Estimate(self.experiment, self.machine, self.ranks, workload, memory, longest, change, hours)

    def require_fit(self, workload: Workload) -> None:
        """Require that a run can fit, by its tensors alone: what the device needs besides them is only assumed.

        Raises:
            FimError: it cannot.
        """
        machine = self.machine
        memory = self._memory(self.experiment, workload).of(workload.pack)
        tensors = memory.total - machine.overhead
        if tensors <= machine.memory:
            return
        change = self._change(workload, self.longest_row(workload))
        where = f"each of {self.ranks} ranks" if self.ranks > 1 else "the rank"
        cure = "use more or larger GPUs, or shorter rows" if change is None else f"set {change}"
        raise FimError(
            f"A pack of {workload.pack.tokens:,} tokens needs about {in_gib(tensors)} on {where}, and "
            f"{in_gib(machine.memory)} are free on {machine.name}: {cure}. `fim estimate` shows what needs the memory."
        )

    def workload_of(self, rows: Rows) -> Workload:
        """The workload of rows that exist."""
        return workload_of_rows(
            self.experiment, rows, strategy=self._strategy, data_ranks=self._data_ranks, cost=self._cost
        )

    def assumed_workload(self, rows: int | None = None, tokens: int | None = None) -> Workload:
        """The workload where there are no rows yet.

        Args:
            rows, tokens: of an epoch, if they are known.
        """
        return assumed_workload(
            self.experiment,
            strategy=self._strategy,
            data_ranks=self._data_ranks,
            cost=self._cost,
            rows=rows,
            tokens=tokens,
        )

    def longest_row(self, workload: Workload) -> int:
        """The longest row that fits alone in its pack, rounded down to ROW_STEP tokens, up to the model's context."""
        of = self._memory(self.experiment, workload).of
        context = getattr(self._config, "max_position_embeddings", None) or LONGEST
        most = max(context, self.experiment.data.max_length)
        return longest_that_fits(lambda tokens: of(workload.row(tokens)).total, self.machine.memory, most)

    @property
    def _config(self) -> PretrainedConfig:
        return self.networks.network(self.experiment).config.get_text_config()

    @property
    def _data_ranks(self) -> int:
        return self.ranks // self.experiment.sequence_parallel_size

    @property
    def _cost(self) -> Cost:
        return training_cost(self.networks.network(self.experiment))

    @property
    def _strategy(self) -> Strategy:
        """The packing with which the model can be trained."""
        return choose_packing(self.experiment, self._config)[0]

    def _memory(self, experiment: Experiment, workload: Workload) -> RankMemory:
        return RankMemory(experiment, self.networks, ranks=self.ranks, several_packs=workload.several_packs)

    def _change(self, workload: Workload, longest: int) -> Change | None:
        """The smallest change; `data.pack_length` first, which costs no accuracy and little time."""
        experiment, row = self.experiment, workload.longest_row
        if row <= longest and row < workload.pack.tokens:
            data = experiment.data.model_copy(update={"pack_length": longest})
            return Change({"data.pack_length": str(longest)}, experiment.model_copy(update={"data": data}))
        packed = self._config.model_type in PACKED_MODEL_TYPES
        choices = Choices(
            ranks=self.ranks,
            heads=self._config.num_attention_heads if packed else 1,
            tiles=packed,
            on_gpu=self.machine.device.type == "cuda",
            sharded=self._memory(experiment, workload).stage > 0,
        )

        def fits(changed: Experiment) -> bool:
            return self._memory(changed, workload).of(workload.pack).total <= self.machine.memory

        return smallest_change(experiment, choices, fits)

    def _hours(self, workload: Workload, utilization: float) -> float | None:
        if workload.operations is None or self.machine.flops is None:
            return None
        epochs = self.experiment.epochs or 1
        return epochs * workload.operations / (self.ranks * self.machine.flops * utilization) / 3600


def longest_that_fits(size: Callable[[int], int], limit: int, most: int) -> int:
    """The most tokens, a multiple of ROW_STEP, whose size is at most `limit`, up to `most`; 0 if there is none.

    Args:
        size: bytes of a number of tokens; convex, and for long rows about affine, so a chord leads close to the answer.
    """
    known: dict[int, int] = {}

    def size_of(steps: int) -> int:
        if steps not in known:
            known[steps] = size(steps * ROW_STEP)
        return known[steps]

    last = max(1, most // ROW_STEP)
    low, high = 1, min(64, last)
    if size_of(low) > limit:
        return 0
    while size_of(high) <= limit:
        if high == last:
            return last * ROW_STEP
        slope = (size_of(high) - size_of(low)) / (high - low)
        beyond = high + int((limit - size_of(high)) / slope) + 1 if slope > 0 else 2 * high
        low, high = high, min(max(beyond, high + 1), last)
    while high - low > 1:
        share = (limit - size_of(low)) / (size_of(high) - size_of(low))
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        if size_of(middle) <= limit:
            low = middle
        else:
            high = middle
    return low * ROW_STEP
