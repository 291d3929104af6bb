"""Reading of weights from safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fim_core.errors import DamagedFile, FimError, first_line
from fim_core.hub import no_progress_bar
from fim_core.network_config import LOADING_ERRORS


def load_weights(place: Path | str, **options: Any) -> PreTrainedModel:
    """Load a causal model with all its weights, from safetensors only. No other function reads weights.

    Args:
        place: folder or hub id.
        options: of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        FimError: the weights do not fit in memory.
        DamagedFile: they are missing or damaged, or do not match the configuration.
    """
    try:
        with no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
            )
    except LOADING_ERRORS as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
            raise FimError(
                f"The weights of {place} do not fit in memory. Use a machine with more memory, or a smaller model."
            ) from error
        raise DamagedFile(
            f"The weights of {place} cannot be loaded: {first_line(error)} Weights must be in safetensors, of a "
            "model type that transformers includes."
        ) from error
    model, found = loaded
    if missing := sorted(map(str, {*found["missing_keys"], *found["mismatched_keys"]})):
        raise DamagedFile(
            f"The weights of {place} do not match its config.json: {len(missing)} tensors are missing or have "
            f"another shape, such as {missing[0]}. Download or copy the folder again."
        )
    return model
