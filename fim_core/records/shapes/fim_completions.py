"""Completions logged by an editor: its state as JSON text (INPUT), and the text that was accepted (OUTPUT)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fim_core.config.data import Source
from fim_core.records.parse import parse_input
from fim_core.records.schema import Completion, Rejection
from fim_core.records.shapes.base import ParsedRow, ShapeColumns


@dataclass(frozen=True)
class FimCompletions:
    """INPUT and OUTPUT; `input_col` and `output_col` name other columns."""

    name: str = "fim_completions"
    types: tuple[str, ...] = ("fim_completions",)
    keys: tuple[str, ...] = ()
    parses_to: type[ParsedRow] = Completion

    def columns(self, source: Source, has_column: Callable[[str], bool]) -> ShapeColumns:
        """The columns of the source's options."""
        return ShapeColumns((source.input_col,), source.output_col)

    def parse(self, text: str, placeholder: str) -> Completion | Rejection:
        """The editor's state, by the table of `fim_core.records.parse`."""
        return parse_input(text, placeholder)
