"""The interface of a row shape: which columns hold a row, and how its text is parsed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fim_core.config.data import Source
from fim_core.records.schema import Completion, Conversation, FinishedPrompt, Rejection

ParsedRow = Completion | FinishedPrompt | Conversation


@dataclass(frozen=True)
class ShapeColumns:
    """Names of the columns that rows of a shape are read from.

    Attributes:
        inputs: columns that become the raw table's `input`.
        output: column that becomes `output`; None leaves it empty.
        join: makes the text of `input` from the cells of `inputs`; None where there is one column, which is copied.
    """

    inputs: tuple[str, ...]
    output: str | None
    join: Callable[[Sequence[str]], str] | None = None


class RowShape(Protocol):
    """A format of rows.

    A shape is recognised by its columns, or named by a source's `type` or by the keys of its `columns`. To support the
    log format of another editor, implement this protocol in a module of this package and add it to `SHAPES`.

    Attributes:
        name: `source_type` of its rows in the raw table.
        types: values of a source's `type` that name the shape.
        keys: the keys of a source's `columns` that name the shape; empty where `columns` does not apply to it.
        parses_to: what `parse` returns for usable rows. It decides how they are rendered and evaluated.
    """

    @property
    def name(self) -> str: ...

    @property
    def types(self) -> tuple[str, ...]: ...

    @property
    def keys(self) -> tuple[str, ...]: ...

    @property
    def parses_to(self) -> type[ParsedRow]: ...

    def columns(self, source: Source, has_column: Callable[[str], bool]) -> ShapeColumns:
        """The columns that a row is read from.

        Args:
            source: its options may name other columns.
            has_column: whether the export has a column, in any case of letters.
        """
        ...

    def parse(self, text: str, placeholder: str) -> ParsedRow | Rejection:
        """Parse the raw table's `input`. A rejection never quotes the text.

        Args:
            placeholder: marks the cursor (`data.placeholder`).
        """
        ...
