"""Memory of one micro-batch: the real forward and backward pass, on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from fim_core.errors import FimError, first_line
from fim_core.modeling.loss import PackedCausalLM
from fim_core.modeling.support import causal_model
from fim_core.training.estimate.live_bytes import LiveBytes
from fim_core.training.estimate.pack_shape import PackShape

Gradients = Literal["kept", "new", "removed"]
"""See `ModelStates.parameter_gradients`."""

FORWARD, OUTPUT, BETWEEN = "forward", "output layer", "layers between"
"""Phases: the forward pass of the layers; then output layer, loss and their backward pass. The backward pass of each layer
is a phase too: `layer -1` (the last, which is computed first), `layer -2`, …, those between, and …, `layer 1`, `layer 0`."""


@dataclass
class Footprint:
    """Bytes that a micro-batch needs besides the model's states.

    Attributes:
        phases: for each phase, bytes by purpose at its peak: activations, output layer, backward, gradients.
        heap_phases: the same of blocks that the allocator does not return when they are freed.
        host: bytes of activations in host memory.
    """

    phases: dict[str, Counter[str]] = field(default_factory=dict)
    heap_phases: dict[str, Counter[str]] = field(default_factory=dict)
    host: int = 0

    @property
    def peak(self) -> Counter[str]:
        """Bytes by purpose at the moment when most memory is used."""
        return _largest(self.phases) + self.heap

    @property
    def heap(self) -> Counter[str]:
        """Bytes by purpose that are in the allocator's heap from the first pass on, whether they are in use or not."""
        return _largest(self.heap_phases)


class CannotSimulate(FimError):
    """A model that does not run without data."""


class Simulation:
    """Runs micro-batches of a network without weights.

    Args:
        module: the network with its loss as in training, on the meta device.
        offload: whether checkpointed activations are kept in host memory.
        returned_from: see `Machine`.
    """

    def __init__(self, module: PackedCausalLM, *, offload: bool = False, returned_from: int = 0) -> None:
        self.network = module.model
        self._module = module.train()
        self._causal: Any = causal_model(module.model)
        body: Any = self._causal.base_model
        self._layers: Sequence[nn.Module] = list(body.layers)
        self._host, self._returned_from = 0, returned_from
        if offload:
            self._causal._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=self._checkpoint_on_host)

    def run(self, shape: PackShape, gradients: Gradients) -> Footprint:
        """The footprint of a micro-batch.

        Layers that repeat are not all computed. In each phase memory is affine in the number of repetitions, so two depths
        determine it. The last layer computes its MLP only for the tokens that are predicted, so the period before it has phases
        of its own too. In the backward pass of the layers between, memory changes evenly from the last layers to the first.

        Raises:
            CannotSimulate: the model cannot run without data.
        """
        period, depth = repetition(self._layers), len(self._layers)
        first = 3 * period + depth % period
        if depth <= 2 * first + period:
            return self.run_layers(shape, gradients, self._layers)
        less, more = (self.run_layers(shape, gradients, self._layers[:n]) for n in (first, first + period))
        times = (depth - first) // period
        return Footprint(
            _extrapolated(less.phases, more.phases, times),
            _extrapolated(less.heap_phases, more.heap_phases, times),
            less.host + (more.host - less.host) * times,
        )

    def run_layers(self, shape: PackShape, gradients: Gradients, layers: Sequence[nn.Module]) -> Footprint:
        """The footprint with only these layers.

        Raises:
            CannotSimulate: as `run`.
        """
        batch = shape.batch()
        if (group := self._module.sequence_group) is not None:
            batch = batch.part(group.rank, group.size)
        batch = batch.to("meta")
        self._host = 0
        with self._only(layers), ExitStack() as hooks:
            parameters = list(self._module.parameters())
            live = LiveBytes([*parameters, *self._module.buffers()], returned_from=self._returned_from)
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            for hook in (*self._watch_gradients(live, trained, gradients), *self._watch_phases(live, layers)):
                hooks.callback(hook.remove)
            with live:
                if gradients == "kept":
                    for parameter in trained:
                        parameter.grad = torch.empty_like(parameter)
                        live.relabel(parameter.grad, "gradients")
                live.phase, live.label = FORWARD, "activations"
                try:
                    (self._module(batch).total * 1.0).backward()
                except (NotImplementedError, RuntimeError) as error:
                    raise CannotSimulate(
                        f"The memory of a model of the type {self._causal.config.model_type} cannot be estimated: it "
                        f"does not run without data. {first_line(error)}"
                    ) from error
            for parameter in trained:
                parameter.grad = None
        return Footprint(live.peaks, live.heap_peaks, self._host)

    @staticmethod
    def _watch_gradients(live: LiveBytes, trained: Sequence[nn.Parameter], gradients: Gradients) -> Iterator[Any]:
        """Hooks that count each parameter's gradient as one, or remove it."""

        def settle(parameter: torch.Tensor) -> None:
            if gradients == "removed":
                parameter.grad = None
            elif parameter.grad is not None:
                live.relabel(parameter.grad, "gradients")

        for parameter in trained:
            yield parameter.register_post_accumulate_grad_hook(settle)

    def _watch_phases(self, live: LiveBytes, layers: Sequence[nn.Module]) -> Iterator[Any]:
        """Hooks that tell `live` which phase begins."""

        def begin(phase: str, label: str) -> None:
            live.phase, live.label = phase, label

        def watch(layer: nn.Module, phase: str) -> Any:
            def when_computed(_: nn.Module, __: Any, output: Any) -> None:
                states = output if isinstance(output, torch.Tensor) else output[0]
                if states.requires_grad:
                    states.register_hook(lambda _: begin(phase, "backward"))

            return layer.register_forward_hook(when_computed)

        period = repetition(self._layers)
        for index, layer in enumerate(layers):
            near_end = index - len(layers) if index >= len(layers) - 2 * period else None
            phase = f"layer {index}" if index < period else BETWEEN if near_end is None else f"layer {near_end}"
            yield watch(layer, phase)
        yield self._causal.base_model.register_forward_hook(lambda *_: begin(OUTPUT, OUTPUT))

    @contextmanager
    def _only(self, layers: Sequence[nn.Module]) -> Iterator[None]:
        """Leave out all other layers within the block."""
        body = self._causal.base_model
        whole = body.layers
        body.layers = nn.ModuleList(layers)
        try:
            yield
        finally:
            body.layers = whole

    def _checkpoint_on_host(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' offloaded checkpoints: what a layer saves is copied to host memory and back."""

        def pack(tensor: torch.Tensor) -> tuple[torch.Size, torch.dtype]:
            self._host += tensor.nbytes
            return tensor.shape, tensor.dtype

        def unpack(packed: tuple[torch.Size, torch.dtype]) -> torch.Tensor:
            return torch.empty(packed[0], dtype=packed[1], device="meta")

        with saved_tensors_hooks(pack, unpack):
            return checkpoint(function, *args, use_reentrant=False, **kwargs)


def repetition(layers: Sequence[nn.Module]) -> int:
    """The smallest number of layers after which the same shapes, dtypes and windows repeat."""
    kinds = [
        (
            tuple((tensor.shape, tensor.dtype, tensor.requires_grad) for tensor in layer.parameters()),
            tuple(getattr(module, "sliding_window", None) for module in layer.modules()),
        )
        for layer in layers
    ]
    return next(n for n in range(1, len(layers) + 1) if all(a == b for a, b in zip(kinds, kinds[n:], strict=False)))


Phases = dict[str, Counter[str]]


def _largest(phases: Phases) -> Counter[str]:
    return max(phases.values(), key=lambda parts: parts.total())


def _extrapolated(less: Phases, more: Phases, times: int) -> Phases:
    """Bytes by phase and purpose with `times` times the layers that `more` has and `less` has not."""
    return {
        phase: Counter(
            {label: parts[label] + (more[phase][label] - parts[label]) * times for label in parts | more[phase]}
        )
        for phase, parts in less.items()
        if phase != BETWEEN
    }
