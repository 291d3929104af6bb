"""Trimming an editor's state, so that its prompt fits into the context of a model.

Training rejects rows that are too long and never cuts a text. A server has to answer, so it removes what is farthest from the
cursor: first the context, field by field in the order of CONTEXT_FIELDS, each from its start; then the prefix from its start
and the suffix from its end. What is left begins and ends with whole lines if that costs at most half of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fim_core.errors import FimError
from fim_core.prompts.builder import PromptBuilder
from fim_core.records.schema import CONTEXT_FIELDS, Completion

_SUFFIX_SHARE = 0.25
"""Share of the room that the suffix gets if both sides of the cursor are trimmed; the prefix matters more."""

_FIELDS = (*CONTEXT_FIELDS, "prefix", "suffix")


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that fits.

    Attributes:
        ids: its token ids.
        completion: the state that it was built from.
        trimmed: number of removed characters by field; empty if nothing was removed.
    """

    ids: list[int]
    completion: Completion
    trimmed: dict[str, int]


def fit(builder: PromptBuilder, completion: Completion, limit: int) -> FittedPrompt:
    """Encode a prompt of at most `limit` tokens, without the ends that do not fit.

    Raises:
        FimError: the prompt without any text of the user is longer, or user text becomes a control token.
    """
    ids = builder.encode(completion)
    if len(ids) <= limit:
        return FittedPrompt(ids, completion, {})
    # Masked before it is cut, since half a secret is not recognised.
    texts, _ = builder.masked(*(getattr(completion, name) for name in _FIELDS))
    whole = left = _with(completion, dict(zip(_FIELDS, texts, strict=True)))
    while len(ids) > limit:
        shorter = _without(builder, left, len(ids) - limit)
        if shorter == left:
            raise FimError(f"The prompt has {len(ids)} tokens without any text; there is room for {limit}.")
        left = shorter
        ids = builder.encode(left)
    trimmed = {name: len(getattr(whole, name)) - len(getattr(left, name)) for name in _FIELDS}
    return FittedPrompt(ids, left, {name: count for name, count in trimmed.items() if count})


def _without(builder: PromptBuilder, completion: Completion, tokens: int) -> Completion:
    """The state with about this many tokens less; the same state if there is no text left to remove."""
    texts = {name: getattr(completion, name) for name in (*builder.context_fields, "prefix", "suffix")}
    ids = {name: builder.encoder.join([text]) if text else [] for name, text in texts.items()}
    kept: dict[str, str] = {}
    for name in builder.context_fields:
        if tokens > 0 and ids[name]:
            kept[name] = _end(builder, texts[name], ids[name], len(ids[name]) - tokens)
            tokens -= len(ids[name])
    if tokens > 0:
        prefix, suffix = len(ids["prefix"]), len(ids["suffix"])
        room = max(0, prefix + suffix - tokens)
        for_suffix = min(suffix, max(int(room * _SUFFIX_SHARE), room - prefix))
        if suffix > for_suffix:
            kept["suffix"] = _start(builder, texts["suffix"], ids["suffix"], for_suffix)
        if prefix > room - for_suffix:
            kept["prefix"] = _end(builder, texts["prefix"], ids["prefix"], room - for_suffix)
    return _with(completion, kept)


def _end(builder: PromptBuilder, text: str, ids: list[int], keep: int) -> str:
    """The end of a text, of at most `keep` tokens, from a line start on if there is one in its first half."""
    start = len(text) - _characters(builder, text, ids[-keep:] if keep > 0 else [])
    # From the character before: it may be a line end itself.
    line_end = text.find("\n", start - 1, (start + len(text)) // 2)
    return text[line_end + 1 if line_end >= 0 else start :]


def _start(builder: PromptBuilder, text: str, ids: list[int], keep: int) -> str:
    """The start of a text, of at most `keep` tokens, up to a line end if there is one in its last half."""
    end = _characters(builder, text, ids[:keep])
    line_end = text.rfind("\n", (end + 1) // 2, end)
    return text[: line_end + 1 if line_end >= 0 else end]


def _characters(builder: PromptBuilder, text: str, ids: list[int]) -> int:
    """The number of characters of some of a text's tokens, less than the text has."""
    return min(len(builder.encoder.decode(ids)), len(text) - 1)


def _with(completion: Completion, texts: dict[str, str]) -> Completion:
    changed: dict[str, Any] = texts
    return replace(completion, **changed)
