"""Finished prompts and their responses, trained on as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fim_core.config.data import Source
from fim_core.records.schema import FinishedPrompt, Reason, Rejection
from fim_core.records.shapes.base import ParsedRow, ShapeColumns


@dataclass(frozen=True)
class PromptResponse:
    """`prompt` and `response`; the source's `columns` names other columns."""

    name: str = "prompt_response"
    types: tuple[str, ...] = ("huggingface_prompt_response",)
    keys: tuple[str, ...] = ("prompt", "response")
    parses_to: type[ParsedRow] = FinishedPrompt

    def columns(self, source: Source, has_column: Callable[[str], bool]) -> ShapeColumns:
        """The columns named by `columns`, or prompt and response."""
        prompt, response = ((source.columns or {}).get(key, key) for key in self.keys)
        return ShapeColumns((prompt,), response)

    def parse(self, text: str, placeholder: str) -> FinishedPrompt | Rejection:
        """The text as it is; rejected where it is blank."""
        return FinishedPrompt(text) if text.strip() else Rejection(Reason.EMPTY_INPUT, "the prompt is empty")
