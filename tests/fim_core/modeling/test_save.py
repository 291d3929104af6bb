"""Saved checkpoints: portable weights, merged adapters, one number format."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors import safe_open
from tiny_models import VOCABULARY, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fim_core.config.model import ModelConfig
from fim_core.modeling.load import build_model, checkpoint_dtype
from fim_core.modeling.save import merged_weights, save_model

SCRATCH = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
}
LORA = {"r": 4, "target_modules": "all-linear"}


def from_scratch(**options):
    return ModelConfig(config=SCRATCH | options, tokenizer="unused")


def move_adapters(model):
    """Adapters begin at zero; give them weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)


def dtypes_in(folder):
    """The number formats in the safetensors files, and the one that config.json states."""
    formats = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            formats |= {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    return formats, getattr(torch, json.loads((folder / "config.json").read_text())["dtype"])


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_loads_anywhere_with_equal_logits(tokenizer, tmp_path, tied):
    model = build_model(from_scratch(tie_word_embeddings=tied), tokenizer, seed=3)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    save_model(model, tokenizer, ends, tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    assert not [*tmp_path.glob("*.bin"), *tmp_path.glob("*.pt")]

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == ends
    assert loaded.config.eos_token_id == ends[0]
    assert loaded.config.use_cache
    assert not model.config.use_cache
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    ids = torch.randint(0, len(tokenizer), (1, 20))
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("adapters", [None, LORA])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_are_saved_in_the_number_format_of_the_base(tokenizer, tmp_path, dtype, tied, adapters):
    base = tiny_model("qwen3", tie_word_embeddings=tied).to(dtype)
    base.save_pretrained(tmp_path / "base")
    config = ModelConfig(name_or_path=str(tmp_path / "base"), peft_config=adapters)
    model = build_model(config, tokenizer, seed=0)
    assert model.dtype == torch.float32
    assert len(tokenizer) > VOCABULARY, "the embeddings grow"

    save_model(model, tokenizer, [tokenizer.eos_token_id], tmp_path / "saved", dtype=checkpoint_dtype(config))
    assert dtypes_in(tmp_path / "saved") == ({dtype}, dtype)
    assert model.dtype == model.config.dtype == torch.float32, "the model that trains on is not touched"

    loaded, before = AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), base.state_dict()
    assert loaded.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight[: len(before[name])], before[name]), name


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_number_format_of_a_model_from_scratch(tokenizer, tmp_path, dtype):
    config = from_scratch(**({"dtype": dtype} if dtype else {}))
    model = build_model(config, tokenizer, seed=0)
    save_model(model, tokenizer, [tokenizer.eos_token_id], tmp_path, dtype=checkpoint_dtype(config))
    expected = torch.bfloat16 if dtype else torch.float32
    assert model.dtype == torch.float32
    assert dtypes_in(tmp_path) == ({expected}, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapters_are_merged_in_float32(tokenizer, dtype):
    config = ModelConfig(config=SCRATCH, tokenizer="unused", peft_config=LORA)
    model = build_model(config, tokenizer, seed=2).to(dtype)
    move_adapters(model)
    expected = copy.deepcopy(model).float().merge_and_unload().state_dict()
    found = merged_weights(model.get_base_model())
    assert found.keys() == expected.keys() == build_model(from_scratch(), tokenizer, seed=2).state_dict().keys()
    for name, weight in found.items():
        assert torch.equal(weight.float(), expected[name]), name
