"""Configurations of networks, from scratch or pretrained, without importing peft or the networks themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from fim_core.atomic import read_json
from fim_core.config.model import ModelConfig
from fim_core.errors import FimError, first_line
from fim_core.hub import require_place

OLDER_OPTIONS = frozenset({"rope_theta", "rope_scaling"})
"""Former options that transformers still converts to `rope_parameters`."""

LOADING_ERRORS = (
    *(
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        ImportError,
        RuntimeError,
        MemoryError,
    ),
    *(SafetensorError, StrictDataclassError),
)
"""Errors that transformers raises for weights, kernels and (quantized) configurations that it cannot find or use."""


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
    config, options = original_config(str(model.name_or_path)), model.hf_config_kwargs
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


def original_config(place: str) -> PretrainedConfig:
    """The transformers configuration of a pretrained model, as it is in its folder or on the hub.

    Raises:
        FimError: it cannot be found, or transformers does not know the type.
    """
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
