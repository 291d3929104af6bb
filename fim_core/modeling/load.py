"""Loading of models: from scratch or pretrained, prepared for training on packs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fim_core.atomic import read_json
from fim_core.config.model import ModelConfig, PeftConfig
from fim_core.errors import FimError, first_line
from fim_core.hub import require_place
from fim_core.modeling.attention import attention_name, register, select_backend
from fim_core.modeling.partition import partitioned_loading, whole_shape, whole_weights
from fim_core.modeling.support import causal_model, head_size, supports_prefix_tree
from fim_core.modeling.weights import LOADING_ERRORS, load_weights

logger = logging.getLogger(__name__)

OLDER_OPTIONS = frozenset({"rope_theta", "rope_scaling"})
"""Former options that transformers still converts to `rope_parameters`."""

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
    config = scratch_config(model.config) if model.config is not None else _pretrained_config(str(model.name_or_path))
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


def network_config(model: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    """The transformers configuration of `model`, from its folder, the hub, or its `config` section.

    Raises:
        FimError: it cannot be found or is invalid.
    """
    if model.config is None:
        return pretrained_config(model)
    if (given := model.config.get("vocab_size", len(tokenizer))) < len(tokenizer):
        raise FimError(
            f"model.config.vocab_size {given} is less than the tokenizer's {len(tokenizer)}. "
            "Remove the key, or raise it."
        )
    # Packs contain no padding, and the embedding at a padding index would never be updated.
    of_tokenizer = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": None,
    }
    return scratch_config(of_tokenizer | model.config)


def pretrained_config(model: ModelConfig) -> PretrainedConfig:
    """The transformers configuration of a pretrained model, with `hf_config_kwargs` applied.

    Raises:
        FimError: it cannot be found; or an option is unknown, has an invalid value, or would leave weights unused.
    """
    config, options = _pretrained_config(str(model.name_or_path)), model.hf_config_kwargs
    if not options:
        return config
    for option in options:
        if option in OLDER_OPTIONS:
            raise FimError(
                f"model.hf_config_kwargs.{option}: transformers has this in `rope_parameters` now; use that."
            )
        if not hasattr(config, option):
            raise FimError(
                f"model.hf_config_kwargs.{option}: a model of the type {config.model_type} has no such option."
            )
    layers = getattr(config, "num_hidden_layers", None)
    if (asked := options.get("num_hidden_layers", layers)) != layers:
        raise FimError(
            f"model.hf_config_kwargs.num_hidden_layers is {asked}, but the model has {layers}, and ArcticTraining would "
            "start with random weights. Define such a model in `model.config`, from scratch."
        )
    try:
        return type(config).from_dict({**config.to_dict(), **options})
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise FimError(f"model.hf_config_kwargs cannot be used: {first_line(error)}") from error


def scratch_config(options: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers configuration of the `config` section.

    Raises:
        FimError: transformers does not know the type, would ignore an option, or cannot use a value.
    """
    options = dict(options)
    kind = options.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise FimError(f"model.config.model_type {kind!r} is unknown to transformers. Use qwen3, llama, gemma3_text, …")
    defaults = CONFIG_MAPPING[kind]()
    for option in options:  # transformers would accept any name, and ignore it
        if option not in OLDER_OPTIONS and not hasattr(defaults, option):
            raise FimError(f"model.config.{option}: a model of the type {kind} has no such option.")
    try:
        return AutoConfig.for_model(kind, **options)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise FimError(f"model.config cannot be used: {error}") from error


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


def _pretrained_config(place: str) -> PretrainedConfig:
    folder = Path(place)
    require_place(place, "model")
    if folder.is_dir() and (folder / "config.json").is_file():
        options = read_json(folder / "config.json")
        kind = options.get("model_type") if isinstance(options, dict) else None
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise FimError(
                f"The model {place} is of the type {kind!r} by its config.json, which transformers does not know. "
                "Models that need their own code are not supported."
            )
    try:
        return AutoConfig.from_pretrained(folder if folder.is_dir() else place, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise FimError(f"The model {place} cannot be loaded: {first_line(error)}") from error


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
