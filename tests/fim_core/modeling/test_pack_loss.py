"""Loss and gradient of packed rows, compared with the same rows one by one, for every model type and option."""

from __future__ import annotations

import pytest
import torch
from tiny_models import OPTIONS, family_rows, gradient, plain_loss, relative_difference, tiny_model
from torch import nn

from fim_core.errors import FimError
from fim_core.modeling.attention import attention_name, register
from fim_core.modeling.load import enable_activation_checkpointing
from fim_core.modeling.loss import LossOptions, PackedCausalLM, TiledCrossEntropy, batch_loss
from fim_core.modeling.support import PACKED_MODEL_TYPES
from fim_core.packing import IGNORE_INDEX, Rows, collate, plan_packs

register()


def packed_loss(model, rows, *, strategy="prefix_tree", pack_length=64, micro_batch_size=1, **options):
    """The loss of all rows, summed over micro-batches as a training step does."""
    plan = list(plan_packs(rows, strategy=strategy, pack_length=pack_length))
    total = weight = 0.0
    for at in range(0, len(plan), micro_batch_size):
        sums = PackedCausalLM(model, **options)(collate(plan[at : at + micro_batch_size], rows))
        total, weight = total + sums.total, weight + sums.weight
    return total / weight


def assert_equal_training(model, backend, rows, *, tolerance=1e-5, **options):
    """Loss and gradient of packs against the model's own forward, row by row."""
    model.set_attn_implementation("eager")
    model.zero_grad()
    expected = plain_loss(model, rows, *([options["reduction"]] if "reduction" in options else []))
    expected.backward()
    expected_gradient = gradient(model)
    model.set_attn_implementation(attention_name(backend))
    model.zero_grad()
    loss = packed_loss(model, rows, **options)
    loss.backward()
    torch.testing.assert_close(loss.to(expected), expected, rtol=tolerance, atol=0)
    assert relative_difference(gradient(model), expected_gradient) < tolerance


def test_every_supported_model_type_is_tested():
    assert set(OPTIONS) == PACKED_MODEL_TYPES


@pytest.mark.parametrize("model_type", sorted(PACKED_MODEL_TYPES))
def test_packed_rows_equal_separate_rows(model_type):
    model = tiny_model(model_type)
    softcap = getattr(model.config, "attn_logit_softcapping", None)
    assert_equal_training(model, "segments" if softcap is None else "mask", family_rows())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen3", "llama", "gemma3_text"])
def test_packed_rows_equal_separate_rows_with_a_dense_mask_and_either_head(model_type, tied):
    assert_equal_training(tiny_model(model_type, tie_word_embeddings=tied), "mask", family_rows(1))


@pytest.mark.parametrize("strategy", ["prefix_tree", "flat", "none"])
@pytest.mark.parametrize("reduction", ["token", "sample"])
@pytest.mark.parametrize(("micro_batch_size", "tile_logits"), [(1, 2**24), (3, 200)])
def test_one_loss_however_the_rows_are_packed(strategy, reduction, micro_batch_size, tile_logits):
    options = {"reduction": reduction, "micro_batch_size": micro_batch_size, "tile_logits": tile_logits}
    assert_equal_training(tiny_model("qwen3"), "segments", family_rows(2), strategy=strategy, **options)


@pytest.mark.parametrize("offload", [False, True])
def test_recomputed_activations_change_nothing(offload):
    model = tiny_model("qwen3")
    enable_activation_checkpointing(model, offload=offload)
    assert_equal_training(model, "segments", family_rows(3))


def test_training_on_whole_rows_shares_nothing_and_is_exact():
    rows = family_rows(4)
    tokens = [rows.tokens_of(row).tolist() for row in range(len(rows))]
    assert_equal_training(tiny_model("qwen3"), "segments", Rows.from_lists(tokens, tokens))


def test_models_without_packed_attention_run_row_by_row():
    model = tiny_model("qwen3")
    rows = family_rows(5)
    expected = plain_loss(model, rows)
    for strategy in ("flat", "none"):
        torch.testing.assert_close(packed_loss(model, rows, strategy=strategy, micro_batch_size=2), expected)
    with pytest.raises(FimError, match="pack_samples"):
        packed_loss(model, rows)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize(
    ("path", "attention", "options"),
    [
        ("a tree", "segments", {"strategy": "prefix_tree"}),
        ("a tree", "mask", {"strategy": "prefix_tree"}),
        ("rows in one pack", "segments", {"strategy": "flat"}),
        ("packs in one batch", "segments", {"strategy": "none", "micro_batch_size": 4}),
        ("recomputed layers", "segments", {"strategy": "prefix_tree"}),
        ("row by row", None, {"strategy": "flat"}),
    ],
)
def test_a_row_cannot_reach_into_another(model_type, path, attention, options):
    """The gradient of one row's loss for the embeddings of tokens that only other rows hold is exactly zero."""
    model = tiny_model(model_type, tie_word_embeddings=False)
    model.set_attn_implementation("sdpa" if attention is None else attention_name(attention))
    if path == "recomputed layers":
        enable_activation_checkpointing(model)
    prompt = [1, 2, 3]
    rows = [prompt + [10 * row + i for i in range(1, 5)] for row in range(1, 5)]
    for row in range(4):
        labels = [[IGNORE_INDEX] * 5 + (r[5:] if i == row else [IGNORE_INDEX] * 2) for i, r in enumerate(rows)]
        model.zero_grad()
        packed_loss(model, Rows.from_lists(rows, labels), **options).backward()
        grad = model.get_input_embeddings().weight.grad
        others = [token for i, r in enumerate(rows) if i != row for token in r[3:]]
        assert (grad[others] == 0).all()
        assert (grad[[*prompt, *rows[row][3:6]]] != 0).any(dim=1).all()


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "granite"])
@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.1, 0.0), (0.0, 0.01), (0.2, 0.1)])
def test_label_smoothing_and_z_loss(model_type, label_smoothing, z_loss):
    model, rows = tiny_model(model_type), family_rows(6)
    expected = plain_loss(model, rows, label_smoothing=label_smoothing, z_loss=z_loss)
    expected.backward()
    expected_gradient = gradient(model)
    model.zero_grad()
    loss = packed_loss(model, rows, strategy="none", label_smoothing=label_smoothing, z_loss=z_loss)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert relative_difference(gradient(model), expected_gradient) < 1e-5


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("tile_logits", [1, 100, 10_000])
@pytest.mark.parametrize("frozen", [False, True])
def test_tiled_cross_entropy_is_exact_in_float64(softcap, tile_logits, frozen):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((11, 6), (23, 6), (23,)))
    operands = [hidden.requires_grad_(), weight.requires_grad_(not frozen), bias.requires_grad_(not frozen)]
    targets = torch.randint(0, 23, (11,), generator=generator)
    weights = torch.rand(11, generator=generator)
    total, losses = TiledCrossEntropy.apply(
        *operands, targets, weights, LossOptions(0.7, softcap, 0.1, 0.05, tile_logits)
    )
    logits = 0.7 * nn.functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    plain = nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)
    expected = ((plain + 0.05 * logits.logsumexp(-1).square()) * weights).sum()
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)
    wanted = [operand for operand in operands if operand.requires_grad]
    found, right = (torch.autograd.grad(3 * loss, wanted, retain_graph=loss is expected) for loss in (total, expected))
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


def test_per_row_sums_name_the_row_whose_loss_is_not_finite():
    model, rows = tiny_model("qwen3", tie_word_embeddings=False), family_rows(7)
    model.set_attn_implementation(attention_name("segments"))
    batch = collate(list(plan_packs(rows, strategy="prefix_tree", pack_length=500)), rows)
    sums = batch_loss(model, batch)
    torch.testing.assert_close(sums.row_totals.sum(), sums.total.detach())
    assert sums.row_targets.tolist() == rows.targets_per_row[[int(name) for name in batch.row_ids]].tolist()
    assert sums.weight == sums.row_targets.sum()
    bad = batch.row_ids.index("5")
    place = batch.predict_positions[batch.target_rows == bad][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[batch.input_ids[0, place]] = float("nan")
    holders = {
        index
        for index, name in enumerate(batch.row_ids)
        if batch.input_ids[0, place] in rows.tokens_of(int(name))[:-1] and sums.row_targets[index]
    }
    worse = set(torch.nonzero(~torch.isfinite(batch_loss(model, batch).row_totals)).flatten().tolist())
    assert bad in worse
    assert worse <= holders


def test_nothing_to_train_on_gives_a_connected_zero():
    model, rows = tiny_model("qwen3"), Rows.from_lists([[1, 2, 3]], [[IGNORE_INDEX] * 3])
    model.set_attn_implementation(attention_name("segments"))
    for reduction in ("token", "sample"):
        model.zero_grad()
        sums = batch_loss(
            model, collate(list(plan_packs(rows, strategy="flat", pack_length=4)), rows), reduction=reduction
        )
        assert sums.total.item() == sums.weight.item() == 0
        sums.total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert gradient(model).abs().max() == 0


def test_evaluation_computes_the_same_loss_and_no_gradient():
    model, rows = tiny_model("qwen3"), family_rows(8)
    model.set_attn_implementation(attention_name("segments"))
    trained = packed_loss(model, rows)
    model.eval()
    with torch.no_grad():
        evaluated = packed_loss(model, rows)
    assert not evaluated.requires_grad
    assert torch.equal(evaluated, trained.detach())


def test_a_model_called_without_a_pack_is_an_error():
    model = tiny_model("qwen3")
    model.set_attn_implementation(attention_name("segments"))
    with pytest.raises(FimError, match="without one"):
        model(input_ids=torch.tensor([[1, 2]]))


def test_attention_dropout_is_refused():
    model = tiny_model("qwen3", attention_dropout=0.1)
    model.set_attn_implementation(attention_name("segments"))
    with pytest.raises(FimError, match="attention_dropout"):
        packed_loss(model, family_rows())
