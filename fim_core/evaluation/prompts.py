"""Held-out rows in the form that a checkpoint reads, where that is not the form of the data set at hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fim_core.errors import FimError
from fim_core.evaluation.predictors import Predictor
from fim_core.evaluation.rows import RawRow, TokenIds
from fim_core.prompts.builder import PromptRow
from fim_core.prompts.rows import RowBuilder
from fim_core.records.schema import Completion
from fim_core.serving.prompting import RECIPE, load_prompt_builder
from fim_core.template import TEMPLATE
from fim_core.tokenization.encoder import TextEncoder
from fim_core.tokenization.spans import cut_at_spans

_PROMPT_OPTIONS = ("fim_order", "control_tokens", "mask_secrets", "ignore_empty_think")
_PROMPT_FILES = (TEMPLATE, "chat_template.jinja")


def same_prompts(first: Path, second: Path) -> bool:
    """Whether two checkpoints turn the same row into the same tokens.

    Raises:
        FimError: one of them does not tell how its prompts are built.
    """
    return _markup(first) == _markup(second)


def build_tokens(
    predictor: Predictor, rows: Sequence[RawRow | Completion], completions: Sequence[str]
) -> tuple[list[TokenIds], list[TokenIds]]:
    """Prompts and targets as the predictor's checkpoint builds them.

    User text that names a control token is encoded as ordinary text where the tokenizer can, as in serving.

    Args:
        predictor: the model.
        rows: rows of any source type, or editors' states.
        completions: gold completions, as the data set at hand has them.

    Returns:
        Token ids of prompts and targets. The prompt is an empty list where the checkpoint's markup cannot hold the row,
        or would have the model write something other than the gold completion, such as thoughts before it.

    Raises:
        FimError: the checkpoint does not tell how its prompts are built.
    """
    builder = _row_builder(predictor)
    encoder, end = builder.prompts.encoder, json.loads(_read(predictor.folder, RECIPE))["fim_tokens"]["end_id"]
    built = [_built(builder, row, text) for row, text in zip(rows, completions, strict=True)]
    prompts = [[] if row is None else _prompt_tokens(encoder, row) for row in built]
    return prompts, [[*encoder.join([text]), end] for text in completions]


def _row_builder(predictor: Predictor) -> RowBuilder:
    """Rows as the checkpoint was trained on, but none left out that could be completed."""
    prompts = load_prompt_builder(predictor.folder, predictor.tokenizer)
    can_neutralise = prompts.encoder.granularity != "whole"
    prompts.data = prompts.data.model_copy(
        update={
            "control_tokens": "neutralise" if can_neutralise else "reject",
            "skip_empty_prefix": False,
            "skip_empty_output": False,
        }
    )
    return RowBuilder(prompts)


def _built(builder: RowBuilder, row: RawRow | Completion, completion: str) -> PromptRow | None:
    if isinstance(row, Completion):
        built = builder.completion(row, completion)
    elif row.source_type == "messages" and not builder.prompts.tokenizer.chat_template:
        return None
    else:
        built = builder.build(*row)
    return built if isinstance(built, PromptRow) and built.response == completion else None


def _prompt_tokens(encoder: TextEncoder, row: PromptRow) -> TokenIds:
    """The prompt's ids, cut into the pieces of training."""
    if row.trained_spans is None:
        return encoder.join(encoder.pieces(row.prompt, row.control_spans))
    return encoder.join(cut_at_spans(encoder, row.prompt, row.control_spans, row.trained_spans)[0])


def _markup(folder: Path) -> dict[str, object]:
    """All that decides a prompt's tokens."""
    recipe = json.loads(_read(folder, RECIPE))
    texts = {name: (folder / name).read_bytes() for name in _PROMPT_FILES if (folder / name).is_file()}
    template = {} if TEMPLATE in texts else {"template": recipe["data"].get("template")}
    options = {name: recipe["data"].get(name) for name in _PROMPT_OPTIONS}
    cut = {"granularity": recipe.get("granularity")}
    return {"tokenizer": _read(folder, "tokenizer.json")} | texts | template | options | cut | recipe["fim_tokens"]


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise FimError(
            f"The checkpoint {folder} lacks {name}, which says how its prompts are built. "
            "Take a checkpoint that the trained_checkpoint asset wrote."
        ) from error
