"""Memory of a rank, by component."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from fim_core.config import Experiment
from fim_core.config.model import ModelConfig, TrainedTokenizer
from fim_core.modeling.load import (
    build_without_weights,
    training_dtype,
)
from fim_core.modeling.sequence_parallel import SequenceGroup, require_sequence_parallel
from fim_core.network_config import network_config, pretrained_config, scratch_config
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.training.deepspeed_config import deepspeed_config
from fim_core.training.estimate.fused_attention import replace_gpu_kernels
from fim_core.training.estimate.machine import Machine
from fim_core.training.estimate.pack_shape import PackShape
from fim_core.training.estimate.simulation import Footprint, Gradients, Simulation
from fim_core.training.estimate.states import ModelStates, Parameters, model_states, zero_config
from fim_core.training.model import save_activation_memory, with_loss

COMPONENTS = (
    "weights",
    "gathered weights",
    "gradients",
    "optimizer states",
    "activations",
    "output layer",
    "backward pass",
    "communication",
    "optimizer step",
    "overhead",
)
"""Parts of a rank's memory, in the order in which they are shown."""


@dataclass(frozen=True)
class Memory:
    """Memory of a rank at its peak.

    Attributes:
        parts: bytes of each of COMPONENTS that is not 0.
        during: when the peak occurs.
        host: bytes of this rank in host memory, besides the process.
    """

    parts: dict[str, int]
    during: str
    host: int

    @property
    def total(self) -> int:
        """Bytes of the device."""
        return sum(self.parts.values())


@dataclass
class Networks:
    """Simulations by the options that change what is computed, so that each is prepared once.

    Attributes:
        tokenizer: folder of the tokenizer, once it exists.
    """

    machine: Machine
    tokenizer: Path | None = None
    _simulations: dict[Any, Simulation] = field(default_factory=dict)
    _footprints: dict[Any, Footprint] = field(default_factory=dict)

    def footprint(self, experiment: Experiment, shape: PackShape, gradients: Gradients) -> Footprint:
        """The footprint of a micro-batch of this shape."""
        key = (_computation(experiment), shape, gradients)
        if key not in self._footprints:
            self._footprints[key] = self.simulation(experiment).run(shape, gradients)
        return self._footprints[key]

    def network(self, experiment: Experiment) -> PreTrainedModel | PeftModel:
        """The experiment's network, without weights."""
        return self.simulation(experiment).network

    def simulation(self, experiment: Experiment) -> Simulation:
        """The simulation of the experiment's network."""
        key = _computation(experiment)
        if key not in self._simulations:
            self._simulations[key] = prepare(experiment, self.machine, self.tokenizer)
        return self._simulations[key]


def _computation(experiment: Experiment) -> tuple[int, ...]:
    options = (
        "activation_checkpointing",
        "activation_checkpoint_cpu_offload",
        "tiled_mlp_compute",
        "sequence_parallel_size",
    )
    return tuple(getattr(experiment, option) for option in options)


def prepare(experiment: Experiment, machine: Machine, tokenizer: Path | None) -> Simulation:
    """Build an experiment's network without weights, as `fim_core.training.run.prepare_run` does with weights.

    Raises:
        FimError: the model cannot be found or built, or its heads cannot be divided among the ranks.
    """
    model, device = experiment.model, machine.device
    dtype = training_dtype(model, device)
    config = planned_config(model) if tokenizer is None else network_config(model, load_tokenizer(tokenizer))
    require_sequence_parallel(config, experiment.sequence_parallel_size)
    network = build_without_weights(model, config, device=device, dtype=dtype, capability=machine.capability)
    replace_gpu_kernels(network.config, device)
    offload = experiment.activation_checkpoint_cpu_offload and device.type != "cpu"
    save_activation_memory(experiment, network)
    parts = experiment.sequence_parallel_size
    # The last rank of a group has the ends of rows, and with them most targets.
    group = None if parts == 1 else SequenceGroup(parts, parts - 1, None)
    module = with_loss(experiment, network, group)
    return Simulation(module, offload=offload, returned_from=machine.returned_from)


def planned_config(model: ModelConfig) -> PretrainedConfig:
    """The configuration of the network before there is a tokenizer; that of a pretrained model, to which tokens may be added.

    Raises:
        FimError: it cannot be found or is invalid.
    """
    if model.config is None:
        return pretrained_config(model)
    tokenizer = model.tokenizer
    assert tokenizer is not None, "a model without a folder has a tokenizer of its own"
    size = tokenizer.vocab_size if isinstance(tokenizer, TrainedTokenizer) else len(load_tokenizer(tokenizer))
    return scratch_config({"vocab_size": size, "pad_token_id": None} | model.config)


class RankMemory:
    """Estimates the memory of a rank of an experiment."""

    def __init__(self, experiment: Experiment, networks: Networks, *, ranks: int, several_packs: bool) -> None:
        """Args:
        ranks: number of ranks of the run.
        several_packs: whether a rank computes several packs for an optimizer step.
        """
        self.experiment, self._networks, self._ranks, self._several = experiment, networks, ranks, several_packs

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self._config["zero_optimization"]["stage"])

    @cached_property
    def states(self) -> ModelStates:
        """The states, which do not depend on the pack."""
        parameters = Parameters.of(self._networks.network(self.experiment), zero_config(self._config))
        on_gpu = self._networks.machine.device.type == "cuda"
        return model_states(parameters, self._config, dtype=self._dtype, ranks=self._ranks, on_gpu=on_gpu)

    @property
    def _dtype(self) -> torch.dtype:
        return training_dtype(self.experiment.model, self._networks.machine.device)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return deepspeed_config(self.experiment, world_size=self._ranks, dtype=self._dtype)

    def of(self, shape: PackShape) -> Memory:
        """Memory at the peak of a step whose largest pack has this shape.

        Raises:
            FimError: the model cannot be run without data.
        """
        states, on_gpu = self.states, self._networks.machine.device.type == "cuda"
        kept = states.parameter_gradients
        gradients: Gradients = "kept" if kept == "new" and self._several else kept
        footprint = self._networks.footprint(self.experiment, shape, gradients)
        held = Counter(
            {
                "weights": states.weights,
                "gradients": states.gradients,
                "optimizer states": states.optimizer,
                "overhead": self._networks.machine.overhead,
            }
        )
        host = states.host + footprint.host
        if not on_gpu:
            held["optimizer states"] += states.host
        passes = Counter({"gathered weights": states.gathered, "communication": states.buffers})
        for label, size in footprint.peak.items():
            passes[_component(label)] += size
        # Freed activations stay in the heap. Gradients are counted whole, so those in the heap do not count again.
        step = Counter({"gradients": states.whole_gradients, "optimizer step": states.step})
        for label, size in footprint.heap.items():
            if label != "gradients" or kept == "removed":
                step[_component(label)] += size
        peak, during = max(
            ((held + passes, "forward and backward pass"), (held + step, "optimizer step")),
            key=lambda found: found[0].total(),
        )
        return Memory({name: peak[name] for name in COMPONENTS if peak[name]}, during, host if on_gpu else 0)


def _component(label: str) -> str:
    """The one of COMPONENTS that bytes of a simulation belong to."""
    return "backward pass" if label == "backward" else label
