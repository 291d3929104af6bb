"""One raw row of any shape becomes a prompt and a response, or a rejection with its reason."""

from __future__ import annotations

from fim_core.errors import FimError
from fim_core.prompts.builder import PromptBuilder, PromptRow
from fim_core.prompts.finished import around_cursor
from fim_core.prompts.messages import build_messages
from fim_core.records.parse import parse_input
from fim_core.records.schema import Completion, Reason, Rejection


class RowBuilder:
    """Builds rows of every source type with one PromptBuilder."""

    def __init__(self, prompts: PromptBuilder) -> None:
        self.prompts = prompts

    def build(self, source_type: str, input_text: str, output: str) -> PromptRow | Rejection:
        """The row of the raw table's `source_type`, `input` and `output`."""
        if output in self.prompts.data.null_marks:
            output = ""
        if source_type == "fim_completions":
            row = self._completion(input_text, output)
        elif source_type == "prompt_response":
            row = self._finished(input_text, output)
        elif source_type == "messages":
            row = build_messages(self.prompts, input_text)
        else:
            raise FimError(f"The raw table holds rows of type {source_type}, which it does not know.")
        if isinstance(row, Rejection):
            return row
        if self.prompts.data.skip_empty_output and not row.response:
            return Rejection(Reason.EMPTY_OUTPUT, "OUTPUT is empty")
        return row

    def _completion(self, input_text: str, output: str) -> PromptRow | Rejection:
        completion = parse_input(input_text, self.prompts.data.placeholder)
        if isinstance(completion, Rejection):
            return completion
        if self.prompts.data.skip_empty_prefix and not completion.prefix:
            return Rejection(Reason.EMPTY_PREFIX, "nothing stands before the cursor")
        return self.completion(completion, output)

    def completion(self, completion: Completion, output: str) -> PromptRow | Rejection:
        """The row of an editor's state and the text that was accepted there."""
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
            completion.repaired,
            masked + prompt.masked,
        )

    def _finished(self, prompt: str, output: str) -> PromptRow | Rejection:
        """A prompt that is read as it is, control tokens included, and the user's text after it."""
        if not prompt.strip():
            return Rejection(Reason.EMPTY_INPUT, "the prompt is empty")
        around = around_cursor(prompt, self.prompts.tokens, self.prompts.data.fim_order)
        if self.prompts.data.skip_empty_prefix and around is not None and not around[0]:
            return Rejection(Reason.EMPTY_PREFIX, "nothing stands before the cursor")
        response, masked = self._response(output)
        if isinstance(response, Rejection):
            return response
        statement = prompt if around is None else around[0] + output + around[1]
        text, found = self._masked_between_tokens(prompt)
        prefix, suffix = around_cursor(text, self.prompts.tokens, self.prompts.data.fim_order) or (None, None)
        return PromptRow(text, response, prefix, suffix, None, None, statement, masked=masked + found)

    def _masked_between_tokens(self, prompt: str) -> tuple[str, int]:
        """A finished prompt with secrets masked if that is asked for; no secret reaches over a control token."""
        if not self.prompts.data.mask_secrets:
            return prompt, 0
        parts = self.prompts.guard.split(prompt)
        parts[::2], masked = self.prompts.masked(*parts[::2])
        return "".join(parts), masked

    def _response(self, text: str) -> tuple[str, int] | tuple[Rejection, int]:
        (response,), masked = self.prompts.masked(text)
        if self.prompts.reads_control(response, neutralise=self.prompts.data.control_tokens == "neutralise"):
            return Rejection(Reason.CONTROL_TOKEN, "a control token stands in the response"), 0
        return response, masked
