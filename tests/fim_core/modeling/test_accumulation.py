"""In-place accumulation of gradients, compared with plain autograd, including the hooks of parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import family_rows, gradient, relative_difference, tiny_model
from torch import nn

from fim_core.modeling.accumulation import make_embedding_gradient_sparse
from fim_core.modeling.attention import attention_name, register
from fim_core.modeling.load import enable_activation_checkpointing
from fim_core.modeling.loss import PackedCausalLM, run_body
from fim_core.packing import collate, plan_packs

register()

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
HIDDEN = (
    32  # of tiny models: a batch that predicts as many tokens keeps the product, one that predicts fewer its factors
)


def batches_of(rows, *, few):
    """Micro-batches that predict fewer tokens than a hidden state has entries, or one that predicts more."""
    plan = list(plan_packs(rows, strategy="prefix_tree", pack_length=40 if few else 500))
    batches = [collate([pack], rows) for pack in plan]
    assert (len(batches) > 2) is few
    assert all((len(batch.targets) < HIDDEN) is few for batch in batches)
    return batches


def plain_gradient(model, batches):
    """The slow reference: all logits at once, plain autograd."""
    model.zero_grad()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    for batch in batches:
        logits = model.get_output_embeddings()(run_body(model, batch))
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        loss = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        (loss / sum(len(batch.targets) for batch in batches)).backward()
    return gradient(model)


def accumulate(network, batches):
    """Backward passes over micro-batches, as an optimizer step has them."""
    network.zero_grad()
    weight = sum(float(network(batch).weight) for batch in batches)
    for batch in batches:
        (network(batch).total / weight).backward()
    return gradient(network)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("few", [True, False], ids=["factors kept", "product kept"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text"])
def test_gradients_are_those_of_plain_autograd(model_type, tied, few, dtype):
    model = tiny_model(model_type, dtype, tie_word_embeddings=tied)
    model.set_attn_implementation(attention_name("mask"))
    batches = batches_of(family_rows(), few=few)
    batches += batches if few else batches_of(family_rows(1), few=False) * 2
    expected = plain_gradient(model, batches)
    for in_place in (False, True):
        found = accumulate(PackedCausalLM(model, accumulate_in_place=in_place, tile_logits=300), batches)
        assert relative_difference(found, expected) < TOLERANCE[dtype]
    assert not model.get_input_embeddings().weight.grad.is_sparse


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("few", [True, False], ids=["factors kept", "product kept"])
def test_recomputed_activations_and_padded_embeddings(tied, few):
    rows, model = family_rows(1), tiny_model("qwen3", torch.float64, tie_word_embeddings=tied)
    model.get_input_embeddings().padding_idx = int(rows.tokens_of(0)[0])  # its embedding gets no gradient
    model.set_attn_implementation(attention_name("mask"))
    batches = batches_of(rows, few=few)
    expected = plain_gradient(model, batches)
    enable_activation_checkpointing(model)
    found = accumulate(PackedCausalLM(model, accumulate_in_place=True), batches)
    assert relative_difference(found, expected) < 1e-12


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("few", [True, False], ids=["factors kept", "product kept"])
def test_hooks_run_once_in_each_backward_pass_and_see_the_whole_gradient(tied, few):
    """As DeepSpeed's, which take `.grad` away: nothing may arrive after them."""
    rows, model = family_rows(2), tiny_model("qwen3", torch.float64, tie_word_embeddings=tied)
    model.set_attn_implementation(attention_name("mask"))
    batches = batches_of(rows, few=few)
    expected = accumulate(PackedCausalLM(model), batches)
    network = PackedCausalLM(model, accumulate_in_place=True)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    taken = {parameter: [] for parameter in parameters}

    def take(parameter):
        assert parameter.grad.layout == torch.strided
        taken[parameter].append(parameter.grad)
        parameter.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(take)
    accumulate(network, batches)
    assert {len(gradients) for gradients in taken.values()} == {len(batches)}
    found = torch.cat([sum(gradients).flatten() for gradients in taken.values()])
    assert relative_difference(found, expected) < 1e-12


def test_gradients_are_not_reallocated():
    """No tensor of the size of the output layer or the embeddings is allocated after the first micro-batch."""
    rows, model = family_rows(3), tiny_model("qwen3", tie_word_embeddings=False, vocab_size=50_000)
    model.set_attn_implementation(attention_name("mask"))
    network, batches = PackedCausalLM(model, accumulate_in_place=True), batches_of(rows, few=True)
    network(batches[0]).total.backward()
    weights = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    places = [weight.grad.data_ptr() for weight in weights]
    total = network(batches[1]).total
    with torch.profiler.profile(profile_memory=True) as profile:
        total.backward()
    assert [weight.grad.data_ptr() for weight in weights] == places
    assert max(event.cpu_memory_usage for event in profile.events()) < weights[0].numel() * 4 / 10


def test_a_batch_with_nothing_to_train_on_adds_nothing():
    rows, model = family_rows(4), tiny_model("qwen3", tie_word_embeddings=False)
    model.set_attn_implementation(attention_name("mask"))
    network = PackedCausalLM(model, accumulate_in_place=True)
    batch = batches_of(rows, few=False)[0]
    nothing = torch.empty(0, dtype=torch.int64)
    network(replace(batch, predict_positions=nothing, targets=nothing, target_rows=nothing)).total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert gradient(network).abs().max() == 0


def test_frozen_weights_get_no_gradient():
    model = tiny_model("qwen3")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.set_attn_implementation(attention_name("mask"))
    batches = batches_of(family_rows(5), few=True)
    expected = accumulate(PackedCausalLM(adapted), batches)
    found = accumulate(PackedCausalLM(adapted, accumulate_in_place=True), batches)
    assert relative_difference(found, expected) < 1e-6
    assert not model.get_input_embeddings().sparse
    assert all(parameter.grad is None for name, parameter in adapted.named_parameters() if "lora" not in name)


def test_half_precision_is_summed_by_autograd():
    model = tiny_model("qwen3", torch.bfloat16)
    model.set_attn_implementation(attention_name("mask"))
    network = PackedCausalLM(model, accumulate_in_place=True)
    assert not model.get_input_embeddings().sparse
    batches = batches_of(family_rows(6), few=True)
    expected = accumulate(PackedCausalLM(model), batches)
    assert torch.equal(accumulate(network, batches), expected)


def test_a_second_backward_pass_is_refused():
    model = tiny_model("qwen3")
    model.set_attn_implementation(attention_name("mask"))
    total = PackedCausalLM(model)(batches_of(family_rows(7), few=False)[0]).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="retain_graph"):
        total.backward()


def test_other_classes_of_embeddings_are_unchanged():
    module = nn.Linear(2, 2)
    make_embedding_gradient_sparse(module)
    assert not hasattr(module, "sparse")
