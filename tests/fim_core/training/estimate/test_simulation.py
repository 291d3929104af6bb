"""The memory of a training step as followed on shapes, against the same step on real tensors."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from estimate_helpers import CPU, experiment_of
from torch.profiler import ProfilerActivity, profile

from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.modeling.attention import attention_name
from fim_core.network_config import scratch_config
from fim_core.training.estimate.live_bytes import LiveBytes
from fim_core.training.estimate.machine import Machine
from fim_core.training.estimate.pack_shape import PackShape
from fim_core.training.estimate.rank_memory import Memory, Networks, RankMemory
from fim_core.training.estimate.simulation import Gradients, repetition
from fim_core.training.model import save_activation_memory, with_loss

SHAPE = PackShape(tokens=700, targets=100)
KEPT = [{}, {"activation_checkpointing": True}, {"tiled_mlp_compute": True}]
GROUPS = {"gemma3_text": 3, "qwen3": 1}
"""Layers after which the windows of `model_of` repeat."""


def real_step(experiment: Experiment):
    """The training step of an experiment on real tensors of the CPU, to be called; it frees what it made."""
    model = Networks(CPU).network(experiment)
    config = model.config
    made = type(model)(scratch_config({"vocab_size": 600, "pad_token_id": None} | experiment.model.config))
    made.set_attn_implementation(config._attn_implementation)
    made.config.use_cache = False
    save_activation_memory(experiment, made)
    module = with_loss(experiment, made, None).train()
    batch = SHAPE.batch()

    def step() -> None:
        module(batch).total.backward()
        for parameter in module.parameters():
            parameter.grad = None

    return module, step


def profiled_sizes(step) -> list[int]:
    """Bytes of each allocation of a step and, negative, of each free, as torch's allocator reports them to the profiler."""
    step()  # what is made once, such as tables of positions, is not part of it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]


def peak_of(sizes: list[int]) -> int:
    """Largest sum of live bytes."""
    return max(accumulate(sizes), default=0)


@pytest.mark.parametrize("options", KEPT, ids=["plain", "checkpointing", "tiles"])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text"])
def test_peak_equals_that_of_the_allocator(model_type: str, options: dict[str, bool]) -> None:
    experiment = experiment_of(model_type, **options)
    found = Networks(CPU).footprint(experiment, SHAPE, "new").peak.total()
    _, step = real_step(experiment)
    assert found == pytest.approx(peak_of(profiled_sizes(step)), rel=0.05)


@pytest.mark.parametrize("options", KEPT, ids=["plain", "checkpointing", "tiles"])
def test_small_blocks_stay_in_the_heap(options: dict[str, bool]) -> None:
    experiment, returned_from = experiment_of("qwen3", **options), 2 * 700 * 64 * 4
    footprint = Networks(replace(CPU, returned_from=returned_from)).footprint(experiment, SHAPE, "new")
    _, step = real_step(experiment)
    sizes = profiled_sizes(step)
    heap = peak_of([size for size in sizes if abs(size) < returned_from])
    returned = peak_of([size for size in sizes if abs(size) >= returned_from])
    assert min(heap, returned) > 0.2 * (heap + returned)
    assert footprint.heap.total() == pytest.approx(heap, rel=0.1), "what kernels use while they run is not seen"
    assert footprint.peak.total() == pytest.approx(heap + returned, rel=0.05)


@pytest.mark.parametrize("stage", [1, 2])
def test_freed_activations_take_memory_in_the_optimizer_step(stage: int) -> None:
    experiment = experiment_of("qwen3", deepspeed={"zero_optimization": {"stage": stage}})

    def memory(returned_from: int) -> Memory:
        networks = Networks(replace(CPU, returned_from=returned_from))
        return RankMemory(experiment, networks, ranks=2, several_packs=True).of(PackShape(tokens=64, targets=8))

    returned, kept = memory(0), memory(2**30)
    assert returned.during == kept.during == "optimizer step"
    assert "activations" not in returned.parts
    assert kept.parts["activations"] > 3 * 64 * 64 * 4
    assert kept.parts["gradients"] == returned.parts["gradients"]


def test_real_tensors_are_counted_like_those_without_data() -> None:
    experiment = experiment_of("qwen3")
    module, step = real_step(experiment)
    live = LiveBytes([*module.parameters(), *module.buffers()])
    with live:
        step()
    peak = max(parts.total() for parts in live.peaks.values())
    assert Networks(CPU).footprint(experiment, SHAPE, "new").peak.total() == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("returned_from", [0, 2 * 700 * 64 * 4])
@pytest.mark.parametrize(
    ("model_type", "options", "gradients"),
    [
        *(("qwen3", options, "new") for options in KEPT),
        *(("gemma3_text", options, "new") for options in KEPT),
        ("qwen3", {}, "kept"),
        ("qwen3", {}, "removed"),
    ],
)
def test_repeated_layers_are_extrapolated_exactly(
    model_type: str, options: dict[str, bool], gradients: Gradients, returned_from: int
) -> None:
    machine = replace(CPU, returned_from=returned_from)
    simulation = Networks(machine).simulation(experiment_of(model_type, layers=13, **options))
    layers = list(simulation.network.model.layers)
    assert repetition(layers) == GROUPS[model_type]
    whole = simulation.run_layers(SHAPE, gradients, layers)
    found = simulation.run(SHAPE, gradients)
    assert (found.peak, found.heap) == (whole.peak, whole.heap)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_share_a_pack_need_a_part_of_the_memory_each(size: int) -> None:
    experiment = experiment_of("qwen3", sequence_parallel_size=size)
    part = Networks(CPU).footprint(experiment, PackShape(4096, 16), "removed").peak.total()
    whole = Networks(CPU).footprint(experiment_of("qwen3"), PackShape(4096, 16), "removed").peak.total()
    assert whole / size <= part < 1.3 * whole / size


def test_offloaded_checkpoints_are_in_host_memory() -> None:
    gpu = Machine.gpu("H100", 80 * 10**9)
    shape = PackShape(2048, 16)
    kept = Networks(gpu).footprint(experiment_of("qwen3", 12, activation_checkpointing=True), shape, "kept")
    moved = Networks(gpu).footprint(experiment_of("qwen3", 12, activation_checkpoint_cpu_offload=True), shape, "kept")
    inputs = 12 * 2048 * 64 * 4
    assert kept.host == 0
    assert moved.host >= inputs
    assert kept.peak.total() - moved.peak.total() >= inputs * 3 / 4


@pytest.mark.parametrize("backend", ["flex", "mask", "varlen"])
def test_kernels_of_gpus_are_followed_without_one(backend: str) -> None:
    asked = {"flex": "flex_attention", "mask": "sdpa", "varlen": "flash_attention_2"}[backend]
    experiment = experiment_of("qwen3")
    model = experiment.model.model_copy(update={"dtype": "bf16", "attn_implementation": asked})
    networks = Networks(Machine.gpu("H100", 80 * 10**9))
    experiment = experiment.model_copy(update={"model": model})
    assert networks.network(experiment).config._attn_implementation.startswith(attention_name(backend))
    sizes = [networks.footprint(experiment, PackShape(tokens, 16), "new").peak.total() for tokens in (1024, 4096)]
    growth = sizes[1] / sizes[0]
    assert growth > 6 if backend == "mask" else growth < 5, "only a dense mask grows with the square of the length"


def test_a_model_that_needs_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Networks(CPU).simulation(experiment_of("qwen3"))
    body = simulation.network.model
    forward = body.forward
    monkeypatch.setattr(
        body, "forward", lambda *args, **options: forward(*args, **options) if torch.zeros(1, device="meta") else None
    )
    with pytest.raises(FimError, match="memory of a model of the type qwen3 cannot be estimated"):
        simulation.run(SHAPE, "new")
