"""The prompt builder of a checkpoint, for the same prompts in inference as in training."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.errors import FimError
from fim_core.prompt_format.recipe import RECIPE, read_recipe
from fim_core.prompts import PromptBuilder

_MARKERS = ("prefix_id", "suffix_id", "middle_id")


def load_prompt_builder(checkpoint: Path, tokenizer: PreTrainedTokenizerFast) -> PromptBuilder:
    """Load the prompt builder of a checkpoint from the recipe that it was trained with.

    For the same fields, its `encode` returns the same tokens as in training. User text that spells a control token is
    encoded as ordinary text, even if training rejected such rows: a user may be writing about these tokens, and as ordinary
    text they have no effect.

    Args:
        checkpoint: folder with the recipe.
        tokenizer: tokenizer of the checkpoint.

    Raises:
        FimError: the recipe is missing, of another version, or for another tokenizer.
    """
    recipe = read_recipe(checkpoint)
    data = DataConfig(
        sources=[Source(type="demo")],
        control_tokens=recipe.control_tokens,
        mask_secrets=recipe.mask_secrets,
        ignore_empty_think=recipe.ignore_empty_think,
    )
    # The model is the checkpoint itself, since the model that training started from may not exist any more.
    builder = PromptBuilder(tokenizer, ModelConfig(name_or_path=str(checkpoint)), data, recipe)
    if any(getattr(recipe.fim_tokens, name) != getattr(builder.tokens, name) for name in _MARKERS):
        raise FimError(
            f"The FIM tokens of the tokenizer in {checkpoint} differ from those in {RECIPE}. Copy the whole folder again."
        )
    if recipe.granularity == "segment":
        builder.encoder.fall_back()
    return builder
