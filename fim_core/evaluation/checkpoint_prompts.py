"""Prompts of held-out rows for a checkpoint whose prompt format is not that of the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fim_core.errors import FimError
from fim_core.evaluation.eval_set import RawRow, TokenIds
from fim_core.evaluation.predictors import Predictor
from fim_core.inference.prompting import load_prompt_builder
from fim_core.prompt_format.recipe import read_recipe
from fim_core.prompts.builder import PromptBuilder, PromptRow
from fim_core.prompts.finished import around_cursor, is_fim_prompt
from fim_core.prompts.rows import RowBuilder
from fim_core.records.schema import Completion, Conversation, FinishedPrompt
from fim_core.records.shapes import shape_of
from fim_core.tokenization.encoder import TextEncoder
from fim_core.tokenization.spans import cut_at_spans


def same_prompts(first: Path, second: Path) -> bool:
    """Whether two checkpoints turn every row into the same tokens.

    Raises:
        FimError: a checkpoint has no recipe for its prompts.
    """
    return (
        read_recipe(first).same_prompts_as(read_recipe(second))
        and _read(first, "tokenizer.json") == _read(second, "tokenizer.json")
        and _chat_template(first) == _chat_template(second)
    )


def build_tokens(
    predictor: Predictor, rows: Sequence[RawRow | Completion], completions: Sequence[str]
) -> tuple[list[TokenIds], list[TokenIds]]:
    """Build prompts and targets in the format of the predictor's checkpoint.

    User text that spells a control token is encoded as ordinary text, as in serving.

    Args:
        predictor: the model.
        rows: rows of any source type, or editor states.
        completions: gold completions.

    Returns:
        Token ids of prompts and targets. The prompt is an empty list where the checkpoint's markup cannot represent the
        row, or where its response would not be the gold completion (for example, thoughts before it).

    Raises:
        FimError: the checkpoint has no recipe for its prompts.
    """
    builder = _row_builder(predictor)
    encoder, end = builder.prompts.encoder, builder.prompts.tokens.end_id
    built = [_built(builder, row, text) for row, text in zip(rows, completions, strict=True)]
    prompts = [[] if row is None else _prompt_tokens(encoder, row) for row in built]
    return prompts, [[*encoder.join([text]), end] for text in completions]


def _row_builder(predictor: Predictor) -> RowBuilder:
    """A row builder with the checkpoint's format that skips no row that can be completed."""
    prompts = load_prompt_builder(predictor.folder, predictor.tokenizer)
    prompts.data = prompts.data.model_copy(
        update={
            "control_tokens": "neutralise",
            "skip_empty_prefix": False,
            "skip_empty_output": False,
        }
    )
    return RowBuilder(prompts)


def _built(builder: RowBuilder, row: RawRow | Completion, completion: str) -> PromptRow | None:
    if isinstance(row, Completion):
        built = builder.completion(row, completion)
    elif not _can_read(builder.prompts, row):
        return None
    else:
        built = builder.build(*row)
    return built if isinstance(built, PromptRow) and built.response == completion else None


def _can_read(prompts: PromptBuilder, row: RawRow) -> bool:
    """Whether the checkpoint can read a conversation, or a finished prompt with its FIM tokens and order."""
    kind = shape_of(row.source_type).parses_to
    if kind is Conversation:
        return bool(prompts.tokenizer.chat_template)
    if kind is FinishedPrompt and is_fim_prompt(row.input):
        return around_cursor(row.input, prompts.tokens, prompts.data.fim_order) is not None
    return True


def _prompt_tokens(encoder: TextEncoder, row: PromptRow) -> TokenIds:
    """Token ids of the prompt, split into the same pieces as in training."""
    if row.trained_spans is None:
        return encoder.join(encoder.pieces(row.prompt, row.control_spans))
    return encoder.join(cut_at_spans(encoder, row.prompt, row.control_spans, row.trained_spans)[0])


def _chat_template(folder: Path) -> bytes | None:
    """The chat template for conversations; the recipe holds it only if it surrounds completions."""
    path = folder / "chat_template.jinja"
    return path.read_bytes() if path.is_file() else None


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise FimError(
            f"The checkpoint {folder} lacks {name}, which defines how its prompts are built. "
            "Use a checkpoint that the trained_checkpoint asset wrote."
        ) from error
