"""Loading of models: from scratch or pretrained, prepared for training on packs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fim_core.config.model import ModelConfig, PeftConfig
from fim_core.errors import FimError, first_line
from fim_core.modeling.attention import attention_name, register, select_backend
from fim_core.modeling.partition import partitioned_loading, whole_shape, whole_weights
from fim_core.modeling.support import causal_model, head_size, supports_prefix_tree
from fim_core.modeling.weights import load_weights
from fim_core.network_config import LOADING_ERRORS, network_config, original_config, scratch_config

logger = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def training_dtype(model: ModelConfig, device: torch.device | str) -> torch.dtype:
    """The number format of training: `model.dtype`, where auto is bf16 on a GPU and fp32 on a CPU."""
    if model.dtype == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return DTYPES[model.dtype]


def checkpoint_dtype(model: ModelConfig) -> torch.dtype | None:
    """The number format of checkpoints: that of the pretrained model, or `model.config.dtype`.

    None if neither is given: that of training.
    """
    config = scratch_config(model.config) if model.config is not None else original_config(str(model.name_or_path))
    return getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype


def build_model(
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    new_token_ids: Sequence[int] = (),
    partition: Mapping[str, Any] | None = None,
) -> PreTrainedModel | PeftModel:
    """Build the network to train, on `device`, with attention over packs if that is exact for this model.

    Args:
        model: the experiment's `model` section.
        tokenizer: the embeddings are enlarged to hold all its ids.
        seed: for random weights and adapters.
        device, dtype: of the network; dtype defaults to `training_dtype`.
        new_token_ids: ids that a pretrained model has not been trained on, although its embeddings may have rows for them
            (a padded vocabulary). Like added rows, they are drawn around the mean of all embeddings.
        partition: DeepSpeed's configuration (ZeRO stage 3), by which each rank loads only its part of each pretrained
            weight; to be called on all ranks. None: whole weights.

    Raises:
        FimError: the model does not exist, is not in safetensors, needs its own code, or its configuration is invalid.
    """
    device = torch.device(device)
    dtype = dtype or training_dtype(model, device)
    torch.manual_seed(seed)
    config = network_config(model, tokenizer)
    attention = _attention(model, config, device, dtype)
    network: Any  # the types of transformers and PEFT are not compatible
    if model.name_or_path is None:
        network = _from_scratch(config, dtype, attention)
    else:
        with partitioned_loading(partition):
            network = _pretrained(model.name_or_path, config, dtype, attention)
            _grow_embeddings(network, len(tokenizer), new_token_ids, seed)
    network.config.use_cache = False
    if model.type == "liger":
        _use_liger(network, device)
    if model.peft_config is not None:
        torch.manual_seed(seed)  # loading the model may have drawn any number of random numbers
        network = _with_adapters(network, model.peft_config)
    made: PreTrainedModel | PeftModel = network.to(device)
    return made


def build_without_weights(
    model: ModelConfig,
    config: PretrainedConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int] | None,
) -> PreTrainedModel | PeftModel:
    """The network that `build_model` would build on `device`, on the meta device: shapes without memory, for estimates.

    Liger's kernels are not used.

    Args:
        config: result of `scratch_config` or `pretrained_config`.
        device: what it would run on; a GPU need not be present.
        capability: compute capability of the GPU.

    Raises:
        FimError: transformers cannot build such a model, or it cannot have these adapters.
    """
    attention = _attention(model, config, device, dtype, capability)
    with torch.device("meta"):
        network = _from_scratch(config, dtype, attention)
        network.config.use_cache = False
        return network if model.peft_config is None else _with_adapters(network, model.peft_config)


def enable_activation_checkpointing(model: PreTrainedModel | PeftModel, *, offload: bool = False) -> None:
    """Keep only each layer's input in the forward pass and recompute the rest in the backward pass.

    Args:
        offload: keep those inputs in host memory; no effect for a model on a CPU.
    """
    causal = causal_model(model)
    causal.activation_checkpointing_enable({"use_reentrant": False}, offload=offload and causal.device.type != "cpu")


def _attention(
    model: ModelConfig,
    config: PretrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int] | None = None,
) -> str:
    """Name of the attention function; logs a warning if it is not the one requested."""
    supported, why = supports_prefix_tree(config)
    if not supported:
        logger.warning("Rows are computed one at a time, and prefix_tree packing is not possible: %s.", why)
        return "sdpa" if model.attn_implementation == "auto" else model.attn_implementation
    register()
    softcap = getattr(config, "attn_logit_softcapping", None)
    backend, notice = select_backend(model.attn_implementation, device, dtype, softcap, head_size(config), capability)
    if notice:
        logger.warning("%s", notice)
    return attention_name(backend)


def _from_scratch(config: PretrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    try:
        made: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    except LOADING_ERRORS as error:
        raise FimError(f"The model cannot be built from model.config: {first_line(error)}") from error
    return made


def _pretrained(place: str, config: PretrainedConfig, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    folder = Path(place)
    return load_weights(folder if folder.is_dir() else place, config=config, dtype=dtype, attn_implementation=attention)


@torch.no_grad()
def _grow_embeddings(model: PreTrainedModel, tokens: int, new_token_ids: Sequence[int], seed: int) -> None:
    """Give every id of the tokenizer a row in the embeddings; new rows are drawn around the mean of the old ones.

    Around the mean, a new token is about as probable as others and hardly lowers their probability (Hewitt, 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"). At exactly the mean, all new tokens would be
    identical to the model, permanently if only adapters are trained, and it could not tell the prefix of a prompt from
    its suffix.
    """
    before = whole_shape(_weights(model)[0])[0]
    fresh = sorted({*new_token_ids, *range(before, tokens)})
    if not fresh:
        return
    known = torch.ones(before, dtype=torch.bool)
    known[[token for token in fresh if token < before]] = False
    if tokens > before:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    weights = _weights(model)
    generator = torch.Generator().manual_seed(seed)
    with whole_weights(weights):
        for weight in weights:
            spread, mean = torch.std_mean(weight[:before][known].to(torch.float32), dim=0)
            noise = torch.randn(weight[fresh].shape, generator=generator).to(weight.device)
            weight[fresh] = (mean + spread * noise).to(weight.dtype)


def _weights(model: PreTrainedModel) -> list[torch.Tensor]:
    """The parameters that have an entry for each id of the vocabulary."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    assert isinstance(head, nn.Linear)
    return [weight for weight in (embeddings.weight, head.weight, head.bias) if weight is not None]


def _use_liger(model: PreTrainedModel, device: torch.device) -> None:
    """Replace norms, rotary embeddings and MLPs by Liger's kernels. Not yet run on a GPU."""
    if device.type == "cpu":
        logger.warning("model.type liger needs a GPU; on this CPU the standard layers are used, with equal results.")
        return
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
    except ImportError as error:
        raise FimError("model.type liger needs the package liger-kernel: pip install 'fim-assets[gpu]'.") from error
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)


def _with_adapters(model: PreTrainedModel, options: PeftConfig) -> PeftModel:
    adapters = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=options.r,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=options.lora_dropout,
        target_modules=options.target_modules,
    )
    try:
        with warnings.catch_warnings():
            # PEFT uses a name of transformers that is deprecated.
            warnings.filterwarnings("ignore", category=FutureWarning, message="`is_gradient_checkpointing`")
            adapted = get_peft_model(model, adapters)
    except ValueError as error:
        raise FimError(f"model.peft_config cannot be used: {first_line(error)}") from error
    if type(causal_model(adapted).get_output_embeddings()) is not nn.Linear:
        raise FimError(
            "model.peft_config.target_modules names the output layer, which cannot have an adapter. Remove it."
        )
    return adapted
