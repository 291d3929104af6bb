"""The smallest change of an experiment that makes it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fim_core.config import Experiment
from fim_core.config.deepspeed import offloads_optimizer

Fits = Callable[[Experiment], bool]


@dataclass(frozen=True)
class Change:
    """Options to set.

    Attributes:
        options: as they are written in the experiment file, one for each option.
        experiment: with these options.
    """

    options: tuple[str, ...]
    experiment: Experiment


def smallest_change(experiment: Experiment, *, stage: int, on_gpu: bool, fits: Fits) -> Change | None:
    """The first single change that makes the experiment fit, else the changes that do so together; None if nothing does.

    Changes are tried in the order of `_single_changes`, in which the cheapest in time comes first; then they are added
    one by one in that order.

    Args:
        stage: ZeRO stage of the run.
        on_gpu: whether there is host memory besides the device's.
        fits: whether an experiment fits.
    """
    for option, changed in _single_changes(experiment, stage, on_gpu=on_gpu):
        if fits(changed):
            return Change((option,), changed)
    together = Change((), experiment)
    for option, changed in _added(experiment, stage, on_gpu=on_gpu):
        kept = tuple(each for each in together.options if each.split(":")[0] != option.split(":")[0])
        together = Change((*kept, option), changed)
        if fits(changed):
            return together
    return None


def _single_changes(experiment: Experiment, stage: int, *, on_gpu: bool) -> Iterator[tuple[str, Experiment]]:
    if not (experiment.activation_checkpointing or experiment.activation_checkpoint_cpu_offload):
        yield "activation_checkpointing: true", experiment.model_copy(update={"activation_checkpointing": True})
    for higher in range(max(stage, 1) + 1, 4):
        yield f"deepspeed.zero_optimization.stage: {higher}", with_zero(experiment, {"stage": higher})
    if on_gpu and not experiment.activation_checkpoint_cpu_offload:
        yield (
            "activation_checkpoint_cpu_offload: true",
            experiment.model_copy(update={"activation_checkpoint_cpu_offload": True}),
        )
    if on_gpu and not offloads_optimizer(experiment.deepspeed):
        offload = {"offload_optimizer": {"device": "cpu"}} | ({} if stage else {"stage": 1})
        yield "deepspeed.zero_optimization.offload_optimizer: {device: cpu}", with_zero(experiment, offload)


def _added(experiment: Experiment, stage: int, *, on_gpu: bool) -> Iterator[tuple[str, Experiment]]:
    """The single changes, each added to those before."""
    done: set[str] = set()
    while True:
        for option, changed in _single_changes(experiment, stage, on_gpu=on_gpu):
            if option not in done:
                done.add(option)
                stage = changed.deepspeed.get("zero_optimization", {}).get("stage", stage)
                experiment = changed
                yield option, changed
                break
        else:
            return


def with_zero(experiment: Experiment, options: dict[str, object]) -> Experiment:
    """The experiment with options of `deepspeed.zero_optimization`."""
    section = experiment.deepspeed
    zero = {**section.get("zero_optimization", {}), **options}
    return experiment.model_copy(update={"deepspeed": {**section, "zero_optimization": zero}})
