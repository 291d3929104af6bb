"""Prompts at serving time: the very ones that the model was trained on."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.errors import FimError
from fim_core.prompt_format.recipe import RECIPE, read_recipe
from fim_core.prompts import PromptBuilder

_MARKERS = ("prefix_id", "suffix_id", "middle_id")


def load_prompt_builder(checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> PromptBuilder:
    """The prompt builder of a checkpoint, with the recipe that it was trained with.

    Its `encode` gives the tokens of training for the same fields. User text that spells a control token is encoded as
    ordinary text, also where training rejected such rows: someone is waiting, who may well be writing about these
    tokens, and as text they have no power.

    Args:
        checkpoint: folder with the recipe.
        tokenizer: the checkpoint's.

    Raises:
        FimError: the checkpoint has no recipe for prompts, one of another version, or another tokenizer.
    """
    recipe = read_recipe(checkpoint)
    data = DataConfig(
        sources=[Source(type="demo")],
        control_tokens=recipe.control_tokens,
        mask_secrets=recipe.mask_secrets,
        ignore_empty_think=recipe.ignore_empty_think,
    )
    # The checkpoint is all that is needed: the model that training started from may be gone.
    builder = PromptBuilder(tokenizer, ModelConfig(name_or_path=str(checkpoint)), data, recipe)
    if any(getattr(recipe.fim_tokens, name) != getattr(builder.tokens, name) for name in _MARKERS):
        raise FimError(f"The tokenizer in {checkpoint} has other FIM tokens than {RECIPE} says. Copy the folder whole.")
    if recipe.granularity == "segment":
        builder.encoder.fall_back()
    return builder
