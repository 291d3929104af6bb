"""Model architectures that can be written as GGUF: their hyperparameters and the names of their tensors.

llama.cpp computes some things in one way only, whatever config.json says. A model that differs there is refused: it would
load, and complete differently. The sources are llama.cpp's `conversion/` (its converter) and `src/models/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, TensorNameMap, get_tensor_name_map
from transformers import PretrainedConfig

from fim_core.errors import FimError

_OTHER_CONVERTER = (
    "Export it with --format safetensors, and convert that folder with llama.cpp's own convert_hf_to_gguf.py."
)
_GEMMA_FULL_ATTENTION = 6
"""In Gemma 3, every sixth layer has full attention; llama.cpp assumes this."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Attributes:
        arch: its name in GGUF.
        requires: options of config.json that llama.cpp assumes, with the values that it assumes.
        change: changes a float32 tensor to llama.cpp's form, given its name in the checkpoint.
    """

    arch: MODEL_ARCH
    requires: dict[str, Any]
    change: Callable[[str, torch.Tensor, PretrainedConfig], torch.Tensor]


def _unchanged(name: str, tensor: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    return tensor


def _add_one_to_norms(name: str, tensor: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """Gemma multiplies by 1 + weight, llama.cpp by the weight."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def _interleave_rotary(name: str, tensor: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
    """llama.cpp rotates neighbouring rows of a Llama head, transformers those half a head apart."""
    projection = name.split(".")[-2]
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(projection)
    if heads is None:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


_SILU = {"hidden_act": "silu"}
ARCHITECTURES = {
    "qwen2": Architecture(MODEL_ARCH.QWEN2, {**_SILU, "use_sliding_window": False}, _unchanged),
    "qwen3": Architecture(
        MODEL_ARCH.QWEN3, {**_SILU, "use_sliding_window": False, "attention_bias": False}, _unchanged
    ),
    "llama": Architecture(MODEL_ARCH.LLAMA, {**_SILU, "attention_bias": False, "mlp_bias": False}, _interleave_rotary),
    "gemma3_text": Architecture(
        MODEL_ARCH.GEMMA3,
        {
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "use_bidirectional_attention": False,
        },
        _add_one_to_norms,
    ),
}
"""By `model_type` of config.json. Each is compared with llama.cpp in the tests."""


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The architecture of a model.

    Raises:
        FimError: llama.cpp would compute the model differently, or it is not one of ARCHITECTURES.
    """
    found = ARCHITECTURES.get(config.model_type)
    if found is None:
        raise FimError(
            f"Models of type {config.model_type} cannot be written as GGUF here, only {', '.join(ARCHITECTURES)}. "
            f"{_OTHER_CONVERTER}"
        )
    differing = [name for name, value in found.requires.items() if getattr(config, name, value) != value]
    if any(part.get("rope_type", "default") != "default" for part in _rope(config).values()):
        differing.append("rope_parameters")
    if config.model_type == "gemma3_text":
        differing += _gemma_differences(config)
    if config.model_type == "qwen2" and _head_size(config) * config.num_attention_heads != config.hidden_size:
        differing.append("head_dim")
    if differing:
        raise FimError(
            f"llama.cpp's {config.model_type} models have another {differing[0]} than config.json, so this model would "
            f"complete differently there. {_OTHER_CONVERTER}"
        )
    return found


def add_hyperparameters(writer: GGUFWriter, config: PretrainedConfig) -> None:
    """Add the hyperparameters of a model whose architecture is supported."""
    head = _head_size(config)
    rope = _rope(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)


def names_of(architecture: Architecture, config: PretrainedConfig) -> Callable[[str], str]:
    """The function from a tensor's name in the checkpoint to its name in GGUF.

    The function raises FimError for a tensor that llama.cpp does not have.
    """
    known: TensorNameMap = get_tensor_name_map(architecture.arch, config.num_hidden_layers)

    def name_of(name: str) -> str:
        found = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise FimError(f"llama.cpp's {config.model_type} models have no tensor {name}. {_OTHER_CONVERTER}")
        return found

    return name_of


def _head_size(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rope(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """Rotary embeddings by type of attention."""
    parameters = config.rope_parameters
    return parameters if "full_attention" in parameters else {"full_attention": parameters}


def _gemma_differences(config: PretrainedConfig) -> list[str]:
    pattern = [
        "full_attention" if layer % _GEMMA_FULL_ATTENTION == 0 else "sliding_attention"
        for layer in range(1, config.num_hidden_layers + 1)
    ]
    checks = {
        "layer_types": config.layer_types == pattern,
        "query_pre_attn_scalar": config.query_pre_attn_scalar == config.head_dim,
    }
    return [name for name, same in checks.items() if not same]
