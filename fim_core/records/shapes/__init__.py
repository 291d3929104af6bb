"""Row shapes: the formats of rows that exports hold.

A shape says which columns hold a row and parses its text to one of three kinds (`ParsedRow`): a completion, a finished
prompt, or a conversation. Everything after that depends on the kind alone, never on the shape.
"""

from __future__ import annotations

from fim_core.errors import FimError
from fim_core.records.shapes.base import ParsedRow, RowShape, ShapeColumns
from fim_core.records.shapes.fim_completions import FimCompletions
from fim_core.records.shapes.messages import MESSAGES
from fim_core.records.shapes.prompt_response import PromptResponse

__all__ = ["SHAPES", "ParsedRow", "RowShape", "ShapeColumns", "names_of", "shape_of"]

SHAPES: list[RowShape] = [FimCompletions(), PromptResponse(), MESSAGES]
"""All shapes. The first that fits an export's columns is chosen where a source does not name one."""


def shape_of(source_type: str) -> RowShape:
    """The shape of a raw row.

    Raises:
        FimError: no shape has this name.
    """
    for shape in SHAPES:
        if shape.name == source_type:
            return shape
    raise FimError(
        f"The raw table holds rows of the unknown source_type {source_type}. "
        f"Known are {', '.join(shape.name for shape in SHAPES)}. Materialize raw_completions again."
    )


def names_of(kind: type[ParsedRow]) -> set[str]:
    """Names of the shapes whose rows are of one kind."""
    return {shape.name for shape in SHAPES if shape.parses_to is kind}
