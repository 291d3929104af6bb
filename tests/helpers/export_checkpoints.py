"""Checkpoints of small random models, to export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.modeling.save import save_model
from fim_core.prompt_format.recipe import write_recipe
from fim_core.prompts import PromptBuilder

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.15,
}
# Gemma's sixth layer has full attention, the others a window shorter than the prompts.
OPTIONS: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True, "head_dim": 16},
    "qwen3": {"tie_word_embeddings": False},
    "llama": {"tie_word_embeddings": False},
    "gemma3_text": {
        "tie_word_embeddings": False,
        "num_hidden_layers": 6,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
    },
}


def write_checkpoint(
    folder: Path, tokenizer: PreTrainedTokenizerFast, model_type: str, *, order: str = "psm", **options: Any
) -> Path:
    """Write a checkpoint in the format of training; the embedding has a few rows more than there are tokens."""
    tokenizer = copy.deepcopy(tokenizer)
    data = DataConfig(sources=[Source(type="demo")], fim_order=order)
    recipe = PromptBuilder(tokenizer, ModelConfig(config={"model_type": "qwen3"}, tokenizer="trained"), data).recipe
    common = {**COMMON, **OPTIONS.get(model_type, {}), "vocab_size": len(tokenizer) + 3, **options}
    config = AutoConfig.for_model(model_type, **common)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    save_model(model, tokenizer, recipe.fim_tokens.end_ids, folder)
    write_recipe(folder, recipe)
    return folder
