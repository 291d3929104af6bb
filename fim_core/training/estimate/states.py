"""Memory of weights, gradients and optimizer states on a rank, as DeepSpeed's ZeRO stages allocate them.

Read from the sources of DeepSpeed 0.19 (runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, runtime/bf16_optimizer.py,
runtime/fp16/fused_optimizer.py). DeepSpeed's own `estimate_zero2_model_states_mem_needs` and
`estimate_zero3_model_states_mem_needs` count the same weights and states, but neither its buffers nor LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn

from fim_core.modeling.partition import whole_shape

MASTER, MOMENTS, FULL_GRADIENT = 4, 8, 4
"""Bytes of a parameter in float32: its master copy, Adam's two moments, its gradient."""

ALLREDUCE_NUMEL = 500_000_000
"""Gradients that DeepSpeed copies together to sum them over ranks, without ZeRO or in its optimizer for bf16."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a network.

    Attributes:
        trained, frozen: parameters with and without a gradient.
        largest: of the largest trained tensor.
        small: parameters in tensors that ZeRO-3 does not partition.
    """

    trained: int
    frozen: int
    largest: int
    small: int

    @classmethod
    def of(cls, network: nn.Module, zero: DeepSpeedZeroConfig) -> Parameters:
        """Count those of a network; its weights may be partitioned, or on the meta device."""
        sizes = [(whole_shape(parameter).numel(), parameter.requires_grad) for parameter in network.parameters()]
        trained = [size for size, trains in sizes if trains]
        total = sum(size for size, _ in sizes)
        small = sum(size for size, _ in sizes if size < zero.param_persistence_threshold)
        return cls(sum(trained), total - sum(trained), max(trained, default=0), small)


@dataclass(frozen=True)
class ModelStates:
    """Bytes on a rank.

    Attributes:
        weights: what the network computes with.
        gathered: weights of other ranks that ZeRO-3 gathers at a time.
        gradients: between the micro-batches of a step, in DeepSpeed's buffers.
        optimizer: float32 master weights and Adam's moments.
        buffers: for the communication of gradients during the backward pass.
        step: besides, while gradients are summed over ranks and the optimizer takes its step; no activations exist then.
        host: in host memory.
        parameter_gradients: how long the gradients stay that autograd leaves at the parameters, which are not in
            `gradients`: they stay for good (`kept`), or until the optimizer has taken its step (`new`), or are moved to
            DeepSpeed's buffers as soon as they are computed (`removed`).
        whole_gradients: bytes of those that stay, when all of them are computed.
    """

    weights: int
    gathered: int
    gradients: int
    optimizer: int
    buffers: int
    step: int
    host: int
    parameter_gradients: Literal["kept", "new", "removed"]
    whole_gradients: int

    @property
    def resident(self) -> int:
        """Bytes that exist during every forward and backward pass."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.buffers


def zero_config(config: Mapping[str, Any]) -> DeepSpeedZeroConfig:
    """DeepSpeed's options of ZeRO, with its defaults, from the result of `deepspeed_config`."""
    return DeepSpeedZeroConfig(**config["zero_optimization"])


def model_states(
    parameters: Parameters, config: Mapping[str, Any], *, dtype: torch.dtype, ranks: int, on_gpu: bool
) -> ModelStates:
    """The states of a network on each of `ranks` ranks.

    Args:
        config: result of `deepspeed_config`.
        dtype: number format of training.
        on_gpu: on a CPU, buffers take only the memory that is written to, and "host memory" is the rank's own.
    """
    zero = zero_config(config)
    case = _Case(parameters, zero, dtype.itemsize, _accumulation_bytes(config, dtype), ranks, on_gpu)
    if zero.stage == 0:
        return case.unsharded()
    if zero.stage == 3:
        return case.sharded_weights()
    if zero.stage == 1 and dtype == torch.bfloat16 and case.accumulation == FULL_GRADIENT and not case.offloads:
        return case.sharded_by_bf16_optimizer()
    return case.sharded_gradients() if zero.stage == 2 else case.sharded_states()


def _accumulation_bytes(config: Mapping[str, Any], dtype: torch.dtype) -> int:
    names = {"fp32": 4, "float32": 4, "bf16": 2, "bfloat16": 2, "fp16": 2, "float16": 2}
    given = config.get("data_types", {}).get("grad_accum_dtype")
    return dtype.itemsize if given is None else names[given]


@dataclass(frozen=True)
class _Case:
    """The arguments of `model_states`, with sizes of a weight and of an accumulated gradient in bytes."""

    parameters: Parameters
    zero: DeepSpeedZeroConfig
    size: int
    accumulation: int
    ranks: int
    on_gpu: bool

    @property
    def offloads(self) -> bool:
        """Whether optimizer states are in host memory."""
        return self.zero.offload_optimizer is not None and self.zero.offload_optimizer.device != "none"

    @property
    def share(self) -> int:
        """Trained parameters whose states this rank holds."""
        return -(-self.parameters.trained // self.ranks)

    @property
    def weights(self) -> int:
        """Bytes of whole weights."""
        return self.size * (self.parameters.trained + self.parameters.frozen)

    @property
    def bucket(self) -> int:
        """Parameters whose gradients are communicated together."""
        return self.zero.reduce_bucket_size

    @property
    def filled(self) -> int:
        """Parameters that are in the bucket when it is communicated."""
        return min(self.bucket, self.parameters.trained)

    @property
    def staging(self) -> int:
        """Bytes of the buckets, two if communication overlaps with computation, and of the flat copy of one.

        On a CPU they take memory as they fill. A bucket that holds the gradients of all parameters fills while
        activations are freed, so it counts as those gradients (`sharded_states`).
        """
        buckets = 2 if self.zero.overlap_comm and self.zero.stage < 3 else 1
        if self.on_gpu:
            return self.size * (buckets * self.bucket + self.filled)
        return 2 * self.size * self.filled

    def unsharded(self) -> ModelStates:
        """ZeRO stage 0: torch's AdamW in float32; in half precision DeepSpeed's FP16_Optimizer with master weights."""
        trained, half = self.parameters.trained, self.size < MASTER
        copied = self.size * min(trained, ALLREDUCE_NUMEL) if self.ranks > 1 else 0
        return ModelStates(
            weights=self.weights,
            gathered=0,
            gradients=0,
            optimizer=(MOMENTS + half * MASTER) * trained,
            buffers=0,
            step=max(copied, half * FULL_GRADIENT * trained),
            host=0,
            parameter_gradients="new",
            whole_gradients=self.size * trained,
        )

    def sharded_by_bf16_optimizer(self) -> ModelStates:
        """BF16_Optimizer: each rank accumulates whole gradients in float32, and keeps those in bf16, which it overwrites."""
        trained = self.parameters.trained
        return ModelStates(
            weights=self.weights,
            gathered=0,
            gradients=FULL_GRADIENT * trained,
            optimizer=(MASTER + MOMENTS) * self.share,
            buffers=0,
            step=FULL_GRADIENT * min(trained, ALLREDUCE_NUMEL),
            host=0,
            parameter_gradients="kept",
            whole_gradients=self.size * trained,
        )

    def sharded_states(self) -> ModelStates:
        """Stage 1: gradients stay whole until the last micro-batch of a step, when each rank keeps its share."""
        states, host = self._states()
        accumulated = self.accumulation * self.parameters.trained if self.accumulation != self.size else 0
        return ModelStates(
            weights=self.weights,
            gathered=0,
            gradients=accumulated,
            optimizer=states,
            buffers=self.staging - self.size * self.filled if self.on_gpu else 0,
            step=self.size * self.filled + 2 * FULL_GRADIENT * self.share * (not self.offloads),
            host=host,
            parameter_gradients="new",
            whole_gradients=self.size * self.parameters.trained,
        )

    def sharded_gradients(self) -> ModelStates:
        """Stage 2: each rank keeps its share of the gradients as soon as a bucket is full.

        If they are accumulated in another number format than that of the weights, they are in one buffer, which the
        optimizer uses as it is; else it copies them.
        """
        states, host = self._states()
        separate = self.accumulation != self.size
        share = 0 if self.offloads else self.accumulation * self.share
        whole_bucket = not self.on_gpu and self.filled == self.parameters.trained
        return ModelStates(
            weights=self.weights,
            gathered=0,
            gradients=share,
            optimizer=states,
            buffers=0 if whole_bucket else self.staging,
            step=(self.staging if whole_bucket else 0)
            + (0 if separate or self.offloads else FULL_GRADIENT * self.share),
            host=host,
            parameter_gradients="new" if whole_bucket else "removed",
            whole_gradients=0,
        )

    def sharded_weights(self) -> ModelStates:
        """Stage 3: each rank keeps its share of the weights, and gathers those that a layer needs."""
        everything = self.parameters.trained + self.parameters.frozen
        own = self.size * (-(-everything // self.ranks) + self.parameters.small)
        offloads_weights = self.zero.offload_param is not None and self.zero.offload_param.device != "none"
        # Weights that are used again within max_reuse_distance are kept, at the end of the forward pass those of layers
        # in half that distance.
        near = self.parameters.largest + self.zero.max_reuse_distance // 2 + self.zero.prefetch_bucket_size
        states, host = self._states()
        gradients = self.accumulation * self.share
        return ModelStates(
            weights=self.size * self.parameters.small if offloads_weights else own,
            gathered=self.size * min(everything, near, self.zero.max_live_parameters),
            gradients=0 if self.offloads else gradients,
            optimizer=states,
            buffers=self.staging,
            step=0 if self.offloads else FULL_GRADIENT * min(self.share, self.zero.sub_group_size),
            host=host + (gradients if self.offloads else 0) + (own if offloads_weights else 0),
            parameter_gradients="removed",
            whole_gradients=0,
        )

    def _states(self) -> tuple[int, int]:
        """Bytes of master weights and moments on the device and in host memory.

        If they are offloaded, the host also holds their gradients in float32 and a copy of the weights to send back, and
        the device a buffer for one gradient.
        """
        states = (MASTER + MOMENTS) * self.share
        if not self.offloads:
            return states, 0
        buffer = self.size * self.parameters.largest
        return buffer, states + (FULL_GRADIENT + self.size) * self.share + buffer
