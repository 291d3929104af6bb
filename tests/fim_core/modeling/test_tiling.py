"""Training in tiles of tokens, compared with training without, and the memory that it takes."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import family_rows, gradient, relative_difference, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from fim_core.errors import FimError
from fim_core.modeling.attention import attention_name, register
from fim_core.modeling.load import enable_activation_checkpointing
from fim_core.modeling.loss import PackedCausalLM
from fim_core.modeling.support import PACKED_MODEL_TYPES
from fim_core.modeling.tiling import enable_tiled_compute
from fim_core.packing import IGNORE_INDEX, Rows, collate, plan_packs

register()

RECOMPUTE = pytest.mark.parametrize("recompute", [False, True], ids=["activations kept", "layers recomputed"])
TILE = 20
"""Tokens of a tile in these tests; the pack of `family_rows` has about four times as many."""
WIDE = 1024
"""Intermediate size of models whose memory is measured; their hidden size is 32."""


def pack_of(rows):
    """One prefix tree of all rows."""
    (pack,) = plan_packs(rows, strategy="prefix_tree", pack_length=10_000)
    return collate([pack], rows)


def prepared(model_type, *, tiles, recompute=False, dtype=torch.float32, tile_tokens=TILE, attention="mask", **options):
    model = tiny_model(model_type, dtype, **options)
    model.set_attn_implementation(attention_name(attention))
    if recompute:
        enable_activation_checkpointing(model)
    if tiles:
        enable_tiled_compute(model, tile_tokens=tile_tokens)
    return model


def train_on(model, batch):
    """Compute the loss of a batch, which is returned, and its gradient, as in a training run."""
    sums = PackedCausalLM(model, accumulate_in_place=True)(batch)
    loss = sums.total / max(1.0, float(sums.weight))
    loss.backward()
    return loss.detach()


def trained(model, batch):
    """The loss of a batch and its gradient."""
    return train_on(model, batch), gradient(model)


def assert_equal_training(model, reference, batch, tolerance=1e-5):
    (loss, found), (expected_loss, expected) = trained(model, batch), trained(reference, batch)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=0)
    assert relative_difference(found, expected) < tolerance


def lengths_seen(module):
    """A list that grows by the number of tokens of each call of a module."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return seen


@RECOMPUTE
@pytest.mark.parametrize("model_type", sorted(PACKED_MODEL_TYPES))
def test_loss_and_gradient_are_those_without_tiles(model_type, recompute):
    batch = pack_of(family_rows())
    assert batch.layout.tokens > 3 * TILE
    model, reference = (
        prepared(model_type, tiles=tiles, recompute=recompute and tiles, dtype=torch.float64) for tiles in (True, False)
    )
    # RMSNorms compute in float32 whatever the model's dtype.
    assert_equal_training(model, reference, batch, 1e-7)


@pytest.mark.parametrize("strategy", ["prefix_tree", "flat", "none"])
def test_micro_batches_in_float32(strategy):
    """Packs of one tile, of several, and of a number of tokens that tiles do not divide."""
    rows = family_rows(3)
    batches = [collate([pack], rows) for pack in plan_packs(rows, strategy=strategy, pack_length=40)]
    model, reference = (prepared("qwen3", tiles=tiles) for tiles in (True, False))
    assert len(batches) > 1
    for batch in batches:
        assert_equal_training(model, reference, batch)


@RECOMPUTE
def test_adapters(recompute):
    options = LoraConfig(r=4, target_modules=["q_proj", "gate_proj", "down_proj"], init_lora_weights=False)
    models = []
    for tiles in (True, False):
        torch.manual_seed(0)
        model = get_peft_model(prepared("qwen3", tiles=False, recompute=recompute and tiles), options)
        if tiles:
            enable_tiled_compute(model, tile_tokens=TILE)
        models.append(model)
    assert_equal_training(*models, pack_of(family_rows(1)))


def test_random_numbers_are_drawn_again_as_they_were():
    """One tile draws the numbers that a whole pack draws, and its checkpoint the same ones again."""
    options = LoraConfig(r=4, target_modules=["gate_proj", "down_proj"], lora_dropout=0.5, init_lora_weights=False)
    batch, results = pack_of(family_rows(2)), []
    for tiles in (True, False):
        torch.manual_seed(0)
        model = get_peft_model(prepared("qwen3", tiles=tiles, tile_tokens=10_000), options)
        torch.manual_seed(1)
        results.append(trained(model, batch))
    assert torch.equal(results[0][0], results[1][0])
    assert relative_difference(results[0][1], results[1][1]) < 1e-6


@RECOMPUTE
def test_hooks_of_a_parameter_run_once_in_each_backward_pass(recompute):
    model, batch = prepared("qwen3", tiles=True, recompute=recompute), pack_of(family_rows())
    names = {name: 0 for name, _ in model.named_parameters()}

    def count(name):
        names[name] += 1

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: count(name))
    for passes in (1, 2):
        train_on(model, batch)
        assert set(names.values()) == {passes}


def test_the_last_layer_computes_only_positions_to_predict():
    model, batch = prepared("qwen3", tiles=True), pack_of(family_rows())
    first, last = (lengths_seen(model.model.layers[layer].mlp.down_proj) for layer in (0, -1))
    train_on(model, batch)
    # Each tile twice: in the forward pass, and again in the backward pass.
    assert sum(first) == 2 * batch.layout.tokens
    assert sum(last) == 2 * len(batch.targets) < sum(first)
    assert max(first) <= TILE
    assert max(last) <= TILE


def test_a_pack_of_one_tile_is_not_recomputed_within_its_layer():
    model = prepared("qwen3", tiles=True, recompute=True, tile_tokens=10_000)
    batch = pack_of(family_rows())
    mlp = lengths_seen(model.model.layers[0].mlp.down_proj)
    train_on(model, batch)
    assert mlp == [batch.layout.tokens] * 2


def test_nothing_to_train_on_gives_a_connected_zero():
    model = prepared("qwen3", tiles=True)
    loss, found = trained(model, pack_of(Rows.from_lists([[1, 2, 3]], [[IGNORE_INDEX] * 3])))
    assert loss == 0
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not found.any()


def test_evaluation_computes_tiles_once():
    model, batch = prepared("qwen3", tiles=True), pack_of(family_rows())
    expected = train_on(model, batch)
    seen = lengths_seen(model.model.layers[0].mlp.down_proj)
    with torch.no_grad():
        sums = PackedCausalLM(model.eval())(batch)
    assert not sums.total.requires_grad
    assert torch.equal(sums.total / sums.weight, expected)
    assert sum(seen) == batch.layout.tokens
    assert max(seen) <= TILE


def test_half_precision_loses_little():
    """The gradients of tiles are rounded to bfloat16 before they are summed."""
    batch = pack_of(family_rows())
    _, exact = trained(prepared("qwen3", tiles=False, dtype=torch.float64), batch)
    errors = []
    for tiles in (False, True):
        _, found = trained(prepared("qwen3", tiles=tiles, dtype=torch.bfloat16), batch)
        errors.append(relative_difference(found, exact))
    assert errors[1] < 1.2 * errors[0]


def test_other_types_of_model_are_refused():
    config = AutoConfig.for_model(
        "gpt_neox", vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    with pytest.raises(FimError, match="tiled_mlp_compute: the model type gpt_neox"):
        enable_tiled_compute(AutoModelForCausalLM.from_config(config))


def wide_model(*, tiles, recompute):
    """Two layers whose MLPs are much wider than the hidden states, with attention that needs no mask."""
    options: dict[str, Any] = {"intermediate_size": WIDE, "num_hidden_layers": 2, "attention": "segments"}
    return prepared("qwen3", tiles=tiles, recompute=recompute, dtype=torch.bfloat16, tile_tokens=32, **options)


def long_pack(tokens):
    """One row, of which the last tokens are predicted."""
    row = [1 + token % 50 for token in range(tokens)]
    return pack_of(Rows.from_lists([row], [[IGNORE_INDEX] * (tokens - 4) + row[-4:]]))


def bytes_kept(model, batch):
    """Bytes that the forward pass of the model's body keeps for the backward pass, without its parameters."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, pack_layout=batch.layout
        )
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in parameters)


def test_few_bytes_are_kept_for_the_backward_pass():
    kept = {}
    for tiles in (False, True):
        model = wide_model(tiles=tiles, recompute=False)
        short, long = (bytes_kept(model, long_pack(tokens)) for tokens in (128, 192))
        kept[tiles] = (long - short) / 64
    # In bfloat16: each layer's MLP keeps four tensors of its size; with tiles a layer keeps a dozen hidden states.
    assert kept[False] > 2 * 4 * 2 * WIDE
    assert kept[True] < 2 * 12 * 2 * 32


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that still exist: now, at the peak, and of the largest one."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        before = {storage._cdata for storage in storages((args, kwargs))}
        for storage in storages(output):
            size, key = storage.nbytes(), storage._cdata
            if key not in before | self._known:
                self._known.add(key)
                self.live += size
                self.peak, self.largest = max(self.peak, self.live), max(self.largest, size)
                weakref.finalize(storage, self._free, key, size)
        return output

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def storages(tree):
    """The memory of the dense tensors among the arguments or results of an operation."""
    dense = [leaf for leaf in tree_leaves(tree) if torch.is_tensor(leaf) and leaf.layout == torch.strided]
    return [tensor.untyped_storage() for tensor in dense]


def peak_of_training(model, tokens):
    """Peak of live bytes in a training pass, and the bytes of the largest tensor."""
    batch = long_pack(tokens)
    train_on(model, batch)  # creates gradients, and what is derived from the layout
    with LiveBytes() as memory:
        train_on(model, batch)
    return memory.peak, memory.largest


@RECOMPUTE
def test_the_peak_of_memory_contains_no_intermediate_result_of_all_tokens(recompute):
    tokens = 512
    intermediate = tokens * 2 * WIDE
    plain, largest_plain = peak_of_training(wide_model(tiles=False, recompute=recompute), tokens)
    tiled, largest = peak_of_training(wide_model(tiles=True, recompute=recompute), tokens)
    assert largest < intermediate <= largest_plain
    assert plain - tiled > 3 * intermediate


def test_offloaded_activations_are_the_inputs_of_layers_alone(monkeypatch):
    """Tiles within a layer whose input is offloaded do not offload their own."""
    packed: list[torch.Size] = []

    class Offload(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, **_: Any) -> None:
            super().__init__(lambda tensor: packed.append(tensor.shape) or tensor, lambda tensor: tensor)

    monkeypatch.setattr("transformers.modeling_utils.save_on_cpu", Offload)
    model, batch = prepared("qwen3", tiles=True), pack_of(family_rows())
    model.activation_checkpointing_enable({"use_reentrant": False}, offload=True)
    train_on(model, batch)
    assert packed == [(1, batch.layout.tokens, 32)] * 3
