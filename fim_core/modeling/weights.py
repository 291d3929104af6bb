"""Weights from safetensors: the one reader, whoever needs a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from fim_core.errors import DamagedFile, FimError, first_line
from fim_core.hub import no_progress_bar

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
"""What transformers raises for weights, kernels and (quantised) configurations that it cannot use or find."""


def load_weights(place: Path | str, **options: Any) -> PreTrainedModel:
    """A causal model with all of its weights, from safetensors only; the one reader of weights.

    Args:
        place: folder or hub id.
        options: of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        FimError: there are none, or memory does not hold them.
        DamagedFile: they are damaged, or do not belong to the model that the configuration describes.
    """
    try:
        with no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
            )
    except LOADING_ERRORS as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise FimError(
                f"Memory does not hold the weights of {place}. Use a machine with more, or a smaller model."
            ) from error
        raise DamagedFile(
            f"The weights of {place} cannot be loaded: {first_line(error)} Weights must be in safetensors, and their "
            "model one that transformers has itself."
        ) from error
    model, found = loaded
    if missing := sorted(map(str, {*found["missing_keys"], *found["mismatched_keys"]})):
        raise DamagedFile(
            f"The weights of {place} are not those of its config.json: {len(missing)} tensors are missing or have "
            f"another shape, {missing[0]} among them. Get the folder again, whole."
        )
    return model
