"""Prompts at serving time: the very ones that the model was trained on."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.errors import FimError
from fim_core.files import read_json
from fim_core.prompts import PromptBuilder
from fim_core.template import TEMPLATE

RECIPE = "fim.json"

_MARKERS = ("prefix_id", "suffix_id", "middle_id")


def load_prompt_builder(checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> PromptBuilder:
    """The prompt builder of a checkpoint, with the options that it was trained with.

    Its `encode` gives the tokens of training for the same fields. User text that spells a control token is encoded as
    ordinary text, also where training rejected such rows: someone is waiting, who may well be writing about these
    tokens, and as text they have no power.

    Args:
        checkpoint: folder with fim.json; the template lies beside it as template.tmpl.
        tokenizer: the checkpoint's.

    Raises:
        FimError: the checkpoint has no recipe for prompts, one of another version, or another tokenizer.
    """
    place = checkpoint / RECIPE
    try:
        recipe = read_json(place)
        data, model = DataConfig.model_validate(recipe["data"]), ModelConfig.model_validate(recipe["model"])
        trained = [recipe["fim_tokens"][name] for name in _MARKERS]
    except FileNotFoundError as error:
        raise FimError(
            f"{checkpoint} has no {RECIPE}, which says how prompts are built. Use a trained_checkpoint."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{error.error_count()} problems" if isinstance(error, ValidationError) else type(error).__name__
        raise FimError(
            f"{place} does not fit this version of the package ({problem}): "
            "use the version that trained the checkpoint, or train again."
        ) from error
    if (template := checkpoint / TEMPLATE).is_file():
        data = data.model_copy(update={"template": str(template)})
    # The checkpoint is all that is needed: the model that training started from may be gone.
    builder = PromptBuilder(tokenizer, model.model_copy(update={"name_or_path": str(checkpoint)}), data)
    if trained != [getattr(builder.tokens, name) for name in _MARKERS]:
        raise FimError(f"The tokenizer in {checkpoint} has other FIM tokens than {RECIPE} says. Copy the folder whole.")
    if recipe.get("granularity") == "whole":
        builder.encoder.fall_back()
    return builder
