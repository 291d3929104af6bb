"""Saving of models: safetensors, merged adapters, one number format."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from fim_core.modeling.support import causal_model


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerFast,
    end_token_ids: Sequence[int],
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a checkpoint that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    Weights are in safetensors; adapters are merged into them. The end tokens are `eos_token_id` of the generation
    config, so that any server of the checkpoint stops where a completion ends. The model itself is not changed.

    Args:
        model: result of `build_model`, with whole weights.
        tokenizer: saved in the same folder.
        end_token_ids: every id that ends a completion, the trained one first.
        folder: created if missing.
        dtype: of the saved weights and in config.json, see `checkpoint_dtype`. None: that of the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network = causal_model(model)
    dtype = dtype or network.dtype
    weights = merged_weights(network) if isinstance(model, PeftModel) else network.state_dict()
    config, generation = copy.deepcopy(network.config), network.generation_config
    network.config.use_cache = True
    network.config.eos_token_id = end_token_ids[0]
    network.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(end_token_ids),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_token_ids[0],
        do_sample=False,
    )
    network.save_pretrained(str(folder), state_dict=cast(weights, dtype))
    # save_pretrained has written the dtype of the model instead of that of the given weights.
    network.config.dtype = dtype
    network.config.save_pretrained(str(folder))
    network.config, network.generation_config = config, generation
    tokenizer.save_pretrained(folder)
    # safetensors makes its files readable by their owner only; give them the permissions of the other files.
    permissions = (folder / "config.json").stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(permissions)


def merged_weights(network: PreTrainedModel) -> dict[str, torch.Tensor]:
    """All weights of a network with its LoRA layers merged, under the names that they have without adapters.

    Each adapted layer is merged separately in float32, in main memory, which avoids sums in half precision and a copy of
    the whole network.
    """
    layers = [name for name, layer in network.named_modules() if isinstance(layer, LoraLayer)]
    adapted = tuple(f"{name}." for name in layers)
    weights = {name: weight for name, weight in network.state_dict().items() if not name.startswith(adapted)}
    for name in layers:
        merged = copy.deepcopy(network.get_submodule(name)).to("cpu", torch.float32)
        assert isinstance(merged, LoraLayer)
        merged.merge()
        weights |= {f"{name}.{part}": weight for part, weight in merged.get_base_layer().state_dict().items()}
    return weights


def cast(weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights with all floating-point tensors in `dtype`. Tied weights stay one tensor, which is saved once."""
    made: dict[tuple[int, torch.Size], torch.Tensor] = {}
    return {
        name: made.setdefault((weight.data_ptr(), weight.shape), weight.to(dtype))
        if weight.is_floating_point()
        else weight
        for name, weight in weights.items()
    }
