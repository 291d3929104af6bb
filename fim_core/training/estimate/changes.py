"""The smallest change of an experiment that makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fim_core.config import Experiment
from fim_core.config.deepspeed import offloads_optimizer, zero_stage

STAGE = "deepspeed.zero_optimization.stage"


@dataclass(frozen=True)
class Change:
    """Options to set.

    Attributes:
        options: values of options, by their dotted keys in the experiment file.
        experiment: with these options.
    """

    options: dict[str, str]
    experiment: Experiment

    def __str__(self) -> str:
        return ", ".join(f"{option}: {value}" for option, value in self.options.items())


@dataclass(frozen=True)
class Choices:
    """The changes that are possible.

    Attributes:
        ranks: number of ranks.
        heads: attention heads of the model.
        tiles: whether its MLPs can be computed in tiles.
        on_gpu: whether there is host memory besides the device's.
        sharded: whether the run uses ZeRO without being told to.
    """

    ranks: int
    heads: int
    tiles: bool
    on_gpu: bool
    sharded: bool

    @property
    def steps(self) -> tuple[Callable[[Experiment], Iterator[Change]], ...]:
        """For each option its changes of an experiment, one for each value; the least costly option and value first."""
        anywhere = (self._checkpointing, self._tiles, self._stages, self._sequence_parts)
        return (*anywhere, self._activation_offload, self._optimizer_offload) if self.on_gpu else anywhere

    def _checkpointing(self, experiment: Experiment) -> Iterator[Change]:
        if not (experiment.activation_checkpointing or experiment.activation_checkpoint_cpu_offload):
            yield _switched_on(experiment, "activation_checkpointing")

    def _tiles(self, experiment: Experiment) -> Iterator[Change]:
        if self.tiles and not experiment.tiled_mlp_compute:
            yield _switched_on(experiment, "tiled_mlp_compute")

    def _stages(self, experiment: Experiment) -> Iterator[Change]:
        present = zero_stage(experiment.deepspeed, shards=self.sharded)
        for stage in range(max(present, 1) + 1, 4):
            yield Change({STAGE: str(stage)}, _with_zero(experiment, {"stage": stage}))

    def _sequence_parts(self, experiment: Experiment) -> Iterator[Change]:
        for parts in range(experiment.sequence_parallel_size + 1, self.ranks + 1):
            if self.ranks % parts == 0 and self.heads % parts == 0:
                changed = experiment.model_copy(update={"sequence_parallel_size": parts})
                yield Change({"sequence_parallel_size": str(parts)}, changed)

    def _activation_offload(self, experiment: Experiment) -> Iterator[Change]:
        if not experiment.activation_checkpoint_cpu_offload:
            yield _switched_on(experiment, "activation_checkpoint_cpu_offload")

    def _optimizer_offload(self, experiment: Experiment) -> Iterator[Change]:
        if offloads_optimizer(experiment.deepspeed):
            return
        options: dict[str, object] = {"offload_optimizer": {"device": "cpu"}}
        shown = {"deepspeed.zero_optimization.offload_optimizer": "{device: cpu}"}
        if experiment.deepspeed.get("zero_optimization", {}).get("stage") == 0:
            options, shown = {"stage": 1} | options, {STAGE: "1"} | shown
        yield Change(shown, _with_zero(experiment, options))


Step = Callable[[Experiment], Iterator[Change]]
Fits = Callable[[Experiment], bool]


def smallest_change(experiment: Experiment, choices: Choices, fits: Fits) -> Change | None:
    """The first change of one option that makes the experiment fit, else of as few as it takes; None if none does."""
    steps = list(choices.steps)
    for step in steps:
        for change in step(experiment):
            if fits(change.experiment):
                return change
    found = _change_in_turn(experiment, steps, fits)
    if found is None:
        return None
    for step in reversed(choices.steps):  # leave out what is not needed, the most costly first
        fewer = [other for other in steps if other != step]
        if (smaller := _change_in_turn(experiment, fewer, fits)) is not None:
            steps, found = fewer, smaller
    return found


def _change_in_turn(experiment: Experiment, steps: Sequence[Step], fits: Fits) -> Change | None:
    """Change one option after the other, each to its last value before the next, until the experiment fits."""
    options: dict[str, str] = {}
    for step in steps:
        for change in step(experiment):
            options, experiment = options | change.options, change.experiment
            if fits(experiment):
                return Change(options, experiment)
    return None


def _switched_on(experiment: Experiment, option: str) -> Change:
    return Change({option: "true"}, experiment.model_copy(update={option: True}))


def _with_zero(experiment: Experiment, options: dict[str, object]) -> Experiment:
    """The experiment with options of `deepspeed.zero_optimization`."""
    section = experiment.deepspeed
    zero = {**section.get("zero_optimization", {}), **options}
    return experiment.model_copy(update={"deepspeed": {**section, "zero_optimization": zero}})
