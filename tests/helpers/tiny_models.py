"""Small random models of every type that supports packs, and a plain training loss as reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fim_core.packing import IGNORE_INDEX, Rows

VOCABULARY = 61
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": None,
}
WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "gemma": {},
    "gemma2": {**WINDOWED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {**WINDOWED, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 2.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "llama": {"tie_word_embeddings": False, "attention_bias": True},
    "mistral": {"sliding_window": 4},
    "olmo2": {},
    "phi3": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, **WINDOWED},
    "qwen3": {"tie_word_embeddings": True},
    "smollm3": {},
    "starcoder2": {"sliding_window": 4, "use_bias": True, "residual_dropout": 0.0, "embedding_dropout": 0.0},
}


def tiny_model(model_type: str, dtype: torch.dtype = torch.float32, **options: Any) -> PreTrainedModel:
    """A random model with its own attention; its weights are large enough to expose errors."""
    config = AutoConfig.for_model(model_type, **{**COMMON, **OPTIONS[model_type], **options})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    return model.train()


def plain_loss(
    model: PreTrainedModel,
    rows: Rows,
    reduction: str = "token",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """Reference loss: each row separately through the model's own forward, `cross_entropy` over all logits."""
    total, weight = torch.zeros((), dtype=model.dtype), 0.0
    for row in range(len(rows)):
        tokens = torch.tensor(rows.tokens_of(row).tolist())[None]
        labels = torch.tensor(rows.labels_of(row).tolist())[1:]
        keep = labels != IGNORE_INDEX
        if not keep.any():
            continue
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1][keep]
        loss = nn.functional.cross_entropy(logits, labels[keep], reduction="sum", label_smoothing=label_smoothing)
        loss = loss + z_loss * logits.logsumexp(-1).square().sum()
        total = total + (loss if reduction == "token" else loss / keep.sum())
        weight += float(keep.sum()) if reduction == "token" else 1.0
    return total / weight


def gradient(model: nn.Module) -> torch.Tensor:
    """All gradients of a model as one float64 vector."""
    found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters() if p.requires_grad]
    return torch.cat([grad.flatten().to(torch.float64) for grad in found])


def relative_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Euclidean norm of the difference, relative to the expected value."""
    return float((found - wanted).norm() / wanted.norm())


def family_rows(seed: int = 0, count: int = 14) -> Rows:
    """Rows of a few worksheets: nested shared prompts, answers of various lengths, one row without targets."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()

    system, tokens, labels = draw(6), [], []
    worksheets = [system + draw(length) for length in (9, 4)]
    statements = [worksheet + draw(3) for worksheet in worksheets for _ in range(2)]
    for row in range(count):
        prompt = statements[row % len(statements)] + draw(row % 4)
        answer = draw(row % 5 + 1)
        tokens.append(prompt + answer)
        labels.append([IGNORE_INDEX] * len(prompt) + answer)
    labels[3] = [IGNORE_INDEX] * len(labels[3])
    tokens.append(tokens[0])
    labels.append(labels[0])
    return Rows.from_lists(tokens, labels)
