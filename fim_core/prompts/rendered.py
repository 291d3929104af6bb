"""Prompts that a client rendered with FIM markers: the text around the cursor, exactly, or a refusal.

Editors come with prompt templates of well-known models, such as `<|fim_prefix|>…<|fim_suffix|>…<|fim_middle|>`. Such a prompt
has no context and not the markup of training, and its markers would be encoded as ordinary text. So it is taken apart, and
rendered as in training.
"""

from __future__ import annotations

import re

from fim_core.config.model import FimTokenNames
from fim_core.errors import FimError
from fim_core.prompt_format.tokens import FimTokens
from fim_core.prompts.finished import FIM_TOKENS, ORDERS, Order, around_cursor


def fim_block(prefix: str, suffix: str, tokens: FimTokens | FimTokenNames, order: Order) -> str:
    """The FIM block of a prompt: the inverse of `take_apart`."""
    sides = (tokens.prefix + prefix, tokens.suffix + suffix)
    return "".join(sides if order == "psm" else sides[::-1]) + tokens.middle


def take_apart(prompt: str, tokens: FimTokens | FimTokenNames) -> tuple[str, str] | None:
    """Text before and after the cursor of a FIM block in either order.

    None unless the prompt is a FIM block and nothing else, and there is only one way to read it: text that names a marker
    is never split at that name.
    """
    names = (tokens.prefix, tokens.suffix, tokens.middle)
    if any(len(re.findall(f"(?={re.escape(name)})", prompt)) != 1 for name in names):
        return None
    for order in ORDERS:
        sides = around_cursor(prompt, tokens, order)
        if sides is not None and fim_block(*sides, tokens, order) == prompt:
            return sides
    return None


def text_around_cursor(prompt: str, suffix: str, tokens: FimTokens, *, start: str = "") -> tuple[str, str]:
    """Text before and after the cursor of a client's prompt, which may be a FIM block with the markers of the model.

    One marker in the middle of a prompt is text, as in SQL about a table of prompts.

    Args:
        prompt, suffix: as the client sent them.
        tokens: markers of the model.
        start: the tokenizer's token for the start of a text, which may precede a FIM block.

    Raises:
        FimError: the prompt has markers, but is not a FIM block of this model without a suffix of its own.
    """
    if _looks_rendered(prompt.removeprefix(start), tokens, is_own=True):
        sides = take_apart(prompt.removeprefix(start), tokens)
        if sides is not None and not suffix:
            return sides
        raise FimError(f"The prompt contains FIM markers of this model, but is not one FIM block. {_HINT}")
    if any(_looks_rendered(prompt, names, is_own=False) for names in FIM_TOKENS):
        raise FimError(f"The prompt contains FIM markers of another model. {_HINT}")
    return prompt, suffix


_HINT = (
    "Send plain text: the text left of the cursor as the prompt, the text right of it as the suffix, without a prompt "
    "template. This server adds the markers and the context as in training."
)


def _looks_rendered(prompt: str, tokens: FimTokens | FimTokenNames, *, is_own: bool) -> bool:
    """Whether a prompt contains two of the markers, or one at an end where a FIM block has it.

    The markers of another model may be ordinary SQL, such as `[PREFIX]`; they only count in a prompt that begins with one.
    """
    # SentencePiece writes a space as ▁; clients write the token with a space or without.
    first, second, last = (name.lstrip("▁") for name in (tokens.prefix, tokens.suffix, tokens.middle))
    is_several = sum(name in prompt for name in {first, second, last}) > 1
    begins = prompt.lstrip().startswith((first, second))
    if not is_own:
        return begins and is_several
    return is_several or begins or prompt.rstrip().endswith(last)
