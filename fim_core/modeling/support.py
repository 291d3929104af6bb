"""Support of models for exact attention over packs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from transformers import PretrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

PACKED_MODEL_TYPES = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "starcoder2",
    }
)
"""Model types for which tests compare packed with separate rows; others can be added once they pass these tests."""

STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn", "proportional"})
"""Rotary embeddings that depend only on the position of a token, not on the longest row of its batch."""

SUPPORTED_LAYERS = frozenset({"full_attention", "sliding_attention"})


def supports_prefix_tree(config: PretrainedConfig) -> tuple[bool, str]:
    """Whether rows of one pack give the same results as each alone, and if not, why.

    A model that is not supported computes one row at a time (`fim_core.modeling.loss.run_body`): packing flat and none
    stay exact, shared prefixes are not possible.
    """
    name = config.model_type
    other_layers = set(getattr(config, "layer_types", None) or ()) - SUPPORTED_LAYERS
    rope_types = set(_rope_types(getattr(config, "rope_parameters", None))) - STATIC_ROPE
    if other_layers:
        return False, f"{name} has layers of type {sorted(other_layers)[0]}, which carry state from row to row"
    if name not in PACKED_MODEL_TYPES:
        return False, f"{name} is not among the models whose packing is tested: {', '.join(sorted(PACKED_MODEL_TYPES))}"
    if rope_types:
        return False, f"its rotary embedding ({sorted(rope_types)[0]}) depends on the longest row of a pack"
    if getattr(config, "use_bidirectional_attention", False):
        return False, "its tokens attend to later ones"
    if getattr(config, "attention_dropout", 0.0):
        return False, "attention_dropout is not 0; set it in model.config"
    return True, ""


def head_size(config: PretrainedConfig) -> int:
    """Width of a model's attention heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def causal_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model, which PEFT may have wrapped."""
    # Without isinstance: peft takes long to import, and completions do not need it.
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    return cast("PreTrainedModel", unwrap())


def _rope_types(parameters: Any) -> Iterator[str]:
    """All `rope_type` values; some models have a set of parameters for each type of layer."""
    if not isinstance(parameters, Mapping):
        return
    if "rope_type" in parameters:
        yield parameters["rope_type"]
    for value in parameters.values():
        yield from _rope_types(value)
