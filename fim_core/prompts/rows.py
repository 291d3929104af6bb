"""One raw row of any shape becomes a prompt and a response, or a rejection with its reason."""

from __future__ import annotations

from dataclasses import replace

from fim_core.errors import FimError
from fim_core.prompts.builder import PromptBuilder, PromptRow
from fim_core.prompts.markup import ChatMarkup
from fim_core.prompts.messages import build_messages
from fim_core.records.parse import parse_input
from fim_core.records.schema import Completion, Reason, Rejection


class RowBuilder:
    """Builds rows of every source type with one PromptBuilder."""

    def __init__(self, prompts: PromptBuilder) -> None:
        self.prompts = prompts
        self._question: ChatMarkup | None = None

    def build(self, source_type: str, input_text: str, output: str) -> PromptRow | Rejection:
        """The row of the raw table's `source_type`, `input` and `output`."""
        if source_type == "fim_completions":
            row = self._completion(input_text, output)
        elif source_type == "prompt_response":
            row = self._prompt_response(input_text, output)
        elif source_type == "messages":
            row = build_messages(self.prompts, input_text)
        else:
            raise FimError(f"The raw table holds rows of type {source_type}, which is none that there is.")
        if isinstance(row, Rejection):
            return row
        if self.prompts.data.skip_empty_output and not row.response:
            return Rejection(Reason.EMPTY_OUTPUT, "OUTPUT is empty")
        return row

    def _completion(self, input_text: str, output: str) -> PromptRow | Rejection:
        completion = parse_input(input_text)
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

    def _prompt_response(self, question: str, answer: str) -> PromptRow | Rejection:
        if not question.strip():
            return Rejection(Reason.EMPTY_INPUT, "the prompt is empty")
        response, masked = self._response(answer)
        if isinstance(response, Rejection):
            return response
        row = self._question_row(question)
        return row if isinstance(row, Rejection) else replace(row, response=response, masked=row.masked + masked)

    def _question_row(self, question: str) -> PromptRow | Rejection:
        builder = self.prompts
        (text,), masked = builder.masked(question)
        prompt, spans = self._opened(text), None
        if builder.guard.count(prompt) != builder.guard.count(self._opened("x")):
            plane = builder.guard.plane_for(text)
            if builder.data.control_tokens == "reject" or plane is None:
                return Rejection(Reason.CONTROL_TOKEN, "a control token stands in the prompt")
            prompt, spans = builder.guard.reveal(self._opened(builder.guard.hide(text, plane)), plane)
        return PromptRow(prompt, "", "", "", spans, None, question, masked=masked)

    def _opened(self, question: str) -> str:
        if not self.prompts.tokenizer.chat_template:
            return self.prompts.sequence_start + question
        self._question = self._question or ChatMarkup(self.prompts.tokenizer, system=False)
        return self._question.render("", question)

    def _response(self, text: str) -> tuple[str, int] | tuple[Rejection, int]:
        (response,), masked = self.prompts.masked(text)
        if self.prompts.data.control_tokens == "reject" and self.prompts.guard.found_in(response):
            return Rejection(Reason.CONTROL_TOKEN, "a control token stands in the response"), 0
        return response, masked
