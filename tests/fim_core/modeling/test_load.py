"""Loading of models: from scratch, pretrained, with adapters."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from tiny_models import COMMON, VOCABULARY, family_rows, gradient, plain_loss, relative_difference, tiny_model
from transformers import AutoModelForCausalLM, Mamba2Config, Qwen3Config

from fim_core.config.model import ModelConfig
from fim_core.errors import FimError
from fim_core.modeling.attention import attends_over_packs
from fim_core.modeling.flops import training_cost
from fim_core.modeling.load import build_model
from fim_core.modeling.loss import batch_loss
from fim_core.modeling.save import save_model
from fim_core.modeling.support import supports_prefix_tree
from fim_core.packing import collate, plan_packs

SMALL = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


def from_scratch(**options):
    return ModelConfig(config={**SMALL, **options.pop("config", {})}, tokenizer="unused", **options)


def loss_of(model, rows):
    return batch_loss(model, collate(list(plan_packs(rows, strategy="prefix_tree", pack_length=500)), rows))


def test_from_scratch_by_seed(tokenizer):
    first, again, other = (build_model(from_scratch(), tokenizer, seed=seed) for seed in (1, 1, 2))
    assert attends_over_packs(first.config)
    assert first.config.vocab_size == len(tokenizer)
    assert first.config.eos_token_id == tokenizer.eos_token_id
    assert first.dtype == torch.float32
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"config": {"model_type": "no_such_type"}}, "no_such_type"),
        ({"config": {"vocab_size": 20}}, "vocab_size"),
        ({"config": {"num_hidden_layers": "many"}}, "num_hidden_layers"),
        ({"config": {"hiden_size": 64}}, "hiden_size"),
        ({"peft_config": {"target_modules": ["no_such_layer"]}}, "peft_config"),
        ({"peft_config": {"target_modules": ["lm_head"]}}, "output layer"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(tokenizer, options, message):
    with pytest.raises(FimError, match=message):
        build_model(from_scratch(**options), tokenizer, seed=0)


def test_a_missing_unknown_or_unsafe_model_is_named(tokenizer, tmp_path):
    with pytest.raises(FimError, match="no model folder"):
        build_model(ModelConfig(name_or_path=str(tmp_path / "none")), tokenizer, seed=0)
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "config.json").write_text(json.dumps({"model_type": "homemade", "auto_map": {"AutoConfig": "x.Y"}}))
    with pytest.raises(FimError, match="homemade"):
        build_model(ModelConfig(name_or_path=str(unknown)), tokenizer, seed=0)
    pickled = tmp_path / "pickled"
    model = tiny_model("qwen3")
    model.config.save_pretrained(pickled)
    torch.save(model.state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(FimError, match="safetensors"):
        build_model(ModelConfig(name_or_path=str(pickled)), tokenizer, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": "int8"},
        {"num_hidden_layers": "many"},
        {"hidden_size": None},
        {"rope_parameters": {"rope_type": "homemade"}},
        {"dtype": "float3"},
        {"layer_types": ["homemade"]},
        {"hidden_act": "homemade"},
    ],
    ids=lambda change: "-".join(map(str, next(iter(change.items()))))[:40],
)
def test_a_configuration_that_cannot_be_loaded_is_a_clear_error(tokenizer, tmp_path, change):
    tiny_model("qwen3").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(FimError, match="cannot be loaded") as caught:
        build_model(ModelConfig(name_or_path=str(tmp_path)), tokenizer, seed=0)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_in_the_folder_of_a_model_is_not_run(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("someone was asked"))
    tiny_model("qwen3").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    named = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": named}))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran code')")
    model = build_model(ModelConfig(name_or_path=str(tmp_path)), tokenizer, seed=0)
    assert type(model).__module__.startswith("transformers.")


def test_a_missing_kernel_is_a_clear_error(tokenizer, monkeypatch):
    monkeypatch.setattr("fim_core.modeling.load._attention", lambda *_: "flash_attention_3")
    with pytest.raises(FimError, match=r"cannot be built from model\.config"):
        build_model(from_scratch(), tokenizer, seed=0)


def test_options_of_a_pretrained_model_are_replaced(tokenizer, tmp_path):
    small = tiny_model("llama", tie_word_embeddings=True)
    small.save_pretrained(tmp_path / "base")
    place, layers = str(tmp_path / "base"), small.config.num_hidden_layers
    options = {"attention_dropout": 0.25, "rms_norm_eps": 0.5, "num_hidden_layers": layers}
    plain = build_model(ModelConfig(name_or_path=place), tokenizer, seed=0)
    changed = build_model(ModelConfig(name_or_path=place, hf_config_kwargs=options), tokenizer, seed=0)
    assert (changed.config.attention_dropout, changed.config.rms_norm_eps) == (0.25, 0.5)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, changed.state_dict()[name]), name
    plain.config.attention_dropout = 0.25
    for norm in (module for name, module in plain.named_modules() if name.endswith("norm")):
        norm.variance_epsilon = 0.5
    ids = torch.randint(0, VOCABULARY, (1, 20))
    for model in (plain, changed):
        model.eval().set_attn_implementation("sdpa")
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, changed(ids).logits)
    save_model(changed, tokenizer, [tokenizer.eos_token_id], tmp_path / "saved")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "saved").config.rms_norm_eps == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1, but the model has"),
        ({"rms_norm_epsilon": 1e-5}, "a model of the type llama has no such option"),
        ({"rope_theta": 5e4}, "in `rope_parameters` now"),
        ({"hidden_size": "wide"}, "hf_config_kwargs cannot be used"),
        ({"intermediate_size": 17}, "cannot be loaded"),
    ],
)
def test_options_that_cannot_be_replaced_are_named(tokenizer, tmp_path, options, message):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(FimError, match=message):
        build_model(ModelConfig(name_or_path=str(tmp_path), hf_config_kwargs=options), tokenizer, seed=0)


@pytest.mark.parametrize("tied", [True, False])
def test_new_embeddings_are_drawn_around_the_mean(tokenizer, tmp_path, tied):
    small = tiny_model("llama", tie_word_embeddings=tied)
    small.save_pretrained(tmp_path)
    grown = build_model(ModelConfig(name_or_path=str(tmp_path)), tokenizer, seed=0, new_token_ids=[7])
    known = [token for token in range(VOCABULARY) if token != 7]
    for before, after in (
        (small.get_input_embeddings().weight, grown.get_input_embeddings().weight),
        (small.get_output_embeddings().weight, grown.get_output_embeddings().weight),
    ):
        assert after.shape[0] == len(tokenizer)
        assert torch.equal(after[known], before[known])
        spread, mean = torch.std_mean(before[known], dim=0)
        drawn = (after[[7, *range(VOCABULARY, len(tokenizer))]] - mean) / spread
        assert drawn.std().item() == pytest.approx(1, abs=0.1)
        assert drawn.mean().item() == pytest.approx(0, abs=0.1)
        assert len(torch.unique(drawn, dim=0)) == len(drawn), "no two new tokens have the same embedding"
    assert (grown.get_input_embeddings().weight is grown.get_output_embeddings().weight) == tied


def test_adapters_train_alone_and_are_merged(tokenizer, tmp_path):
    options = {"peft_config": {"r": 4, "target_modules": "all-linear"}}
    model = build_model(from_scratch(**options), tokenizer, seed=5)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    rows = family_rows()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    sums = loss_of(model, rows)
    (sums.total / sums.weight).backward()
    found = gradient(model)
    model.zero_grad()
    model.base_model.model.set_attn_implementation("eager")
    expected = plain_loss(model, rows)
    expected.backward()
    torch.testing.assert_close(sums.total / sums.weight, expected, rtol=1e-5, atol=0)
    assert relative_difference(found, gradient(model)) < 1e-5

    save_model(model, tokenizer, [tokenizer.eos_token_id], tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any("lora" in name for name in loaded.state_dict())
    ids = torch.randint(0, len(tokenizer), (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(input_ids=ids).logits)
    assert any("lora" in name for name, _ in model.named_parameters())


def test_liger_on_a_cpu_is_the_plain_model_with_a_message(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        model = build_model(from_scratch(type="liger"), tokenizer, seed=1)
    assert "needs a GPU" in caplog.text
    plain = build_model(from_scratch(), tokenizer, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ({"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}, "linear_attention"),
    ],
)
def test_unsupported_models_give_the_reason(options, why):
    config = Qwen3Config(**COMMON)
    for name, value in options.items():
        setattr(config, name, value)
    supported, reason = supports_prefix_tree(config)
    assert not supported
    assert why in reason


def test_unsupported_models_do_not_pack():
    supported, reason = supports_prefix_tree(Mamba2Config())
    assert not supported
    assert "mamba2" in reason


def test_a_model_that_cannot_pack_keeps_its_own_attention(tokenizer, caplog):
    options = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    with caplog.at_level(logging.WARNING):
        model = build_model(from_scratch(config=options), tokenizer, seed=1)
    assert not attends_over_packs(model.config)
    assert "prefix_tree" in caplog.text


def test_operations_are_those_of_the_matrices(tokenizer):
    model = build_model(from_scratch(), tokenizer, seed=1)
    cost = training_cost(model)
    matrices = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)  # two layers: q and o, k and v, MLP
    assert cost.token == 6 * matrices
    assert cost.target == 6 * 32 * len(tokenizer)
    assert cost.pair == 2 * 12 * 32
    rows = family_rows()
    packs = plan_packs(rows, strategy="none", pack_length=500, cost=cost)
    pairs = sum(length * (length + 1) // 2 for length in rows.lengths.tolist())
    assert sum(pack.cost for pack in packs) == pytest.approx(
        cost.token * rows.lengths.sum() + cost.pair * pairs + cost.target * rows.targets_per_row.sum()
    )
