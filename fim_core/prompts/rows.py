"""Rendering a raw row of any shape to a prompt and a response."""

from __future__ import annotations

from typing import assert_never

from fim_core.prompts.builder import PromptBuilder, PromptRow
from fim_core.prompts.finished import around_cursor
from fim_core.prompts.messages import build_conversation
from fim_core.records.feedback import text_to_train_on
from fim_core.records.schema import Completion, Conversation, FinishedPrompt, Reason, Rejection
from fim_core.records.shapes import ParsedRow, shape_of


class RowBuilder:
    """Builds rows of every shape with one PromptBuilder."""

    def __init__(self, prompts: PromptBuilder) -> None:
        self.prompts = prompts

    def build(self, source_type: str, input_text: str, output: str, *feedback: str | None) -> PromptRow | Rejection:
        """The row of the raw table's `source_type`, `input` and `output`.

        Args:
            feedback: the VERDICT_COLUMNS, if the raw table has them.

        Raises:
            FimError: the source_type is unknown.
        """
        if feedback:
            text = text_to_train_on(output, *feedback, null_marks=self.prompts.data.null_marks)
            if isinstance(text, Rejection):
                return text
            output = text
        parsed = shape_of(source_type).parse(input_text, self.prompts.data.placeholder)
        if isinstance(parsed, Rejection):
            return parsed
        row = self._built(parsed, "" if output in self.prompts.data.null_marks else output)
        if isinstance(row, PromptRow) and self.prompts.data.skip_empty_output and not row.response:
            return Rejection(Reason.EMPTY_OUTPUT, "OUTPUT is empty")
        return row

    def _built(self, parsed: ParsedRow, output: str) -> PromptRow | Rejection:
        match parsed:
            case Completion():
                if self.prompts.data.skip_empty_prefix and not parsed.prefix:
                    return Rejection(Reason.EMPTY_PREFIX, "the prefix is empty")
                return self.completion(parsed, output)
            case FinishedPrompt():
                return self._finished(parsed.text, output)
            case Conversation():
                return build_conversation(self.prompts, parsed)
        assert_never(parsed)

    def completion(self, completion: Completion, output: str) -> PromptRow | Rejection:
        """The row of a completion whose accepted text is `output`."""
        response, masked = self._response(output)
        if isinstance(response, Rejection):
            return response
        prompt = self.prompts.build(completion)
        if isinstance(prompt, Rejection):
            return prompt
        return PromptRow(
            prompt.text,
            response,
            prompt.prefix,
            prompt.suffix,
            prompt.control_spans,
            None,
            completion.prefix + output + completion.suffix,
            is_completion=True,
            repaired=completion.repaired,
            masked=masked + prompt.masked,
        )

    def _finished(self, prompt: str, output: str) -> PromptRow | Rejection:
        """The row of a prompt that is used as it is, control tokens included."""
        around = around_cursor(prompt, self.prompts.tokens, self.prompts.data.fim_order)
        if self.prompts.data.skip_empty_prefix and around is not None and not around[0]:
            return Rejection(Reason.EMPTY_PREFIX, "the prefix is empty")
        response, masked = self._response(output)
        if isinstance(response, Rejection):
            return response
        statement = prompt if around is None else around[0] + output + around[1]
        text, found = self._masked_between_tokens(prompt)
        prefix, suffix = around_cursor(text, self.prompts.tokens, self.prompts.data.fim_order) or (None, None)
        return PromptRow(
            text,
            response,
            prefix,
            suffix,
            None,
            None,
            statement,
            is_completion=prefix is not None,
            is_finished=True,
            masked=masked + found,
        )

    def _masked_between_tokens(self, prompt: str) -> tuple[str, int]:
        """Mask secrets in a finished prompt, if `mask_secrets` is set, between its control tokens only."""
        if not self.prompts.data.mask_secrets:
            return prompt, 0
        parts = self.prompts.guard.split(prompt)
        parts[::2], masked = self.prompts.masked(*parts[::2])
        return "".join(parts), masked

    def _response(self, text: str) -> tuple[str, int] | tuple[Rejection, int]:
        (response,), masked = self.prompts.masked(text)
        if self.prompts.reads_control(response, neutralise=self.prompts.data.control_tokens == "neutralise"):
            return Rejection(Reason.CONTROL_TOKEN, "the response holds a control token"), 0
        return response, masked
