"""Rendering of conversations, and the spans that the assistant wrote.

The spans to train on come from the chat template's assistant mask (`{% generation %}`), or else from rendering turn by
turn: a turn begins where the rendering of the turns before it ends, and ends with the control token that closes it. Text
is never searched for: private characters mark where the template puts a turn's content.

The content of the last assistant turn becomes the response. What the markup writes before the content (Qwen3's empty
<think> block) is trained on too, unless `data.ignore_empty_think` is set.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

from jinja2 import TemplateError

from fim_core.errors import FimError
from fim_core.prompts.builder import PromptBuilder, PromptRow
from fim_core.prompts.chat_template import assistant_spans, render_chat
from fim_core.records.schema import Conversation, Message, Reason, Rejection

_EMPTY_THINK = re.compile(r"\s*<think>\s*</think>\s*")
_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)


def build_conversation(builder: PromptBuilder, conversation: Conversation) -> PromptRow | Rejection:
    """Render a conversation to a row of the prompts table.

    Raises:
        FimError: the tokenizer has no chat template.
    """
    if not builder.tokenizer.chat_template:
        raise FimError("Chat rows (`messages`) need a tokenizer with a chat template. Choose another model.tokenizer.")
    messages = [dict(message) for message in conversation.messages]
    statement = "\n".join(message["content"] for message in messages if message["role"] != "assistant")
    masked = 0
    for message in messages:
        [message["content"]], found = builder.masked(message["content"])
        masked += found
    try:
        return _ConversationRenderer(builder, messages).row(statement, masked)
    except TemplateError:
        return Rejection(Reason.BAD_CONTEXT, "the chat template does not allow these roles in this order")


class _ConversationRenderer:
    """Renders one conversation with its control tokens hidden, and locates the assistant's contents."""

    def __init__(self, builder: PromptBuilder, messages: list[Message]) -> None:
        self.builder = builder
        self.tokenizer = builder.tokenizer
        self.guard = builder.guard
        self.messages = [self._with_reasoning(message) for message in messages]

    def row(self, statement: str, masked: int) -> PromptRow | Rejection:
        texts = [text for message in self.messages for text in message.values()]
        plane = self.guard.plane_for(*texts)
        if plane is None:
            return Rejection(Reason.CONTROL_TOKEN, "the messages use all private characters")
        self.plane = plane
        neutralise = self.builder.data.control_tokens == "neutralise"
        if self.builder.reads_control(*texts, neutralise=neutralise):
            return Rejection(Reason.CONTROL_TOKEN, "the messages contain a control token")
        if self.guard.found_in(*texts):
            self.messages = [
                {key: self.guard.hide(text, plane) for key, text in message.items()} for message in self.messages
            ]
        found = self._turns()
        if isinstance(found, Rejection):
            return found
        text, turns = found
        if self.guard.count(text) != self._own_controls():
            return Rejection(Reason.CONTROL_TOKEN, "markup and messages together form a control token")
        (start, content_start, content_end, _), earlier = turns[-1], turns[:-1]
        trained = [self._trained(text, turn) for turn in earlier]
        if start < content_start and not self._ignored(text[start:content_start]):
            trained.append((start, content_start))
        prompt, trained_spans, control_spans = self._revealed(text[:content_start], trained)
        response, _ = self.guard.reveal(text[content_start:content_end], plane)
        spans = self.builder.decide(prompt, control_spans, neutralise=neutralise)
        if spans is None:
            return Rejection(Reason.CONTROL_TOKEN, "markup and messages together form a control token")
        return PromptRow(
            prompt,
            response,
            "",
            "",
            spans or None,
            trained_spans or None,
            statement,
            is_completion=False,
            masked=masked,
        )

    def _with_reasoning(self, message: Message) -> Message:
        """Move thoughts from the content to `reasoning_content`, if the template writes their tags itself."""
        thought = _THOUGHT.fullmatch(message["content"]) if message["role"] == "assistant" else None
        if thought is None or "reasoning_content" not in str(self.tokenizer.chat_template):
            return message
        return {"role": "assistant", "reasoning_content": thought[1].strip("\n"), "content": thought[2].lstrip("\n")}

    def _turns(self) -> tuple[str, list[tuple[int, int, int, int]]] | Rejection:
        """The rendered conversation, and for each assistant turn: start, start of content, end of content, end."""
        for strip in (False, True):
            messages = [
                {**message, "content": message["content"].strip()} if strip else message for message in self.messages
            ]
            text = render_chat(self.tokenizer, messages, open_turn=False)
            contents = self._contents(messages, text)
            if contents is not None:
                break
        else:
            return Rejection(Reason.BAD_CONTEXT, "the chat template rewrites the text of a turn")
        bounds = assistant_spans(self.tokenizer, messages) or self._turn_by_turn(messages, text, contents)
        if bounds is None or len(bounds) != len(contents):
            return Rejection(Reason.BAD_CONTEXT, "the chat template rewrites earlier turns, so turns cannot be located")
        turns = [(start, *content, end) for (start, end), content in zip(bounds, contents, strict=True)]
        if not all(start <= first <= last <= end for start, first, last, end in turns):
            return Rejection(Reason.BAD_CONTEXT, "the chat template's assistant mask does not cover the turns")
        return text, turns

    def _contents(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
        """Position of each assistant turn's content in `text`; None if the template does more than insert it."""
        begin, end = self.guard.marks(self.plane)
        marked = [
            {**message, "content": f"{begin}{message['content']}{end}"} if message["role"] == "assistant" else message
            for message in messages
        ]
        parts: list[str] = re.split(f"([{begin}{end}])", render_chat(self.tokenizer, marked, open_turn=False))
        turns = sum(message["role"] == "assistant" for message in messages)
        if "".join(parts[::2]) != text or parts[1::2] != [begin, end] * turns:
            return None
        places = list(accumulate(map(len, parts[:-1:2])))
        return list(zip(places[::2], places[1::2], strict=True))

    def _turn_by_turn(
        self, messages: Sequence[Message], text: str, contents: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]] | None:
        spans: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = render_chat(self.tokenizer, messages[:number]) if number else None
            if before is None or not text.startswith(before):
                return None
            closing = self.guard.pattern.search(text, contents[len(spans)][1])
            spans.append((len(before), closing.end() if closing else len(text)))
        return spans

    def _own_controls(self) -> int:
        """Number of control tokens that the markup writes for these turns."""
        plain = [
            {key: "x" if text.strip() and key != "role" else text for key, text in message.items()}
            for message in self.messages
        ]
        return self.guard.count(render_chat(self.tokenizer, plain, open_turn=False))

    def _trained(self, text: str, turn: tuple[int, int, int, int]) -> tuple[int, int]:
        start, content_start, _, end = turn
        return content_start if self._ignored(text[start:content_start]) else start, end

    def _ignored(self, lead: str) -> bool:
        return self.builder.data.ignore_empty_think and _EMPTY_THINK.fullmatch(lead) is not None

    def _revealed(self, text: str, trained: Sequence[tuple[int, int]]) -> tuple[str, list[int], list[int]]:
        """The text without private characters, and the trained spans and control spans in it."""
        cuts = [0, *(place for span in trained for place in span), len(text)]
        parts: list[str] = []
        ends: list[int] = []
        controls: list[int] = []
        position = 0
        for start, end in pairwise(cuts):
            part, spans = self.guard.reveal(text[start:end], self.plane)
            parts.append(part)
            controls += [position + place for place in spans]
            position += len(part)
            ends.append(position)
        return "".join(parts), ends[:-1], controls
