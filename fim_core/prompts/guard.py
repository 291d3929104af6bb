"""Telling the template's control tokens from user text that looks like them."""

from __future__ import annotations

import re
from collections.abc import Collection

from fim_core.prompt_format.tokens import control_pattern

# Private-use planes of Unicode. One of their characters replaces each control token in user text during rendering.
_PRIVATE_PLANES = (0xF0000, 0x100000)


class ControlTokenGuard:
    """Finds names of control tokens in user text, and hides them during rendering so that they stay text.

    Some tokenizers make control tokens of text that does not name them: see `TextEncoder.reads_control`.

    Attributes:
        pattern: finds control tokens as the tokenizer does.
    """

    def __init__(self, tokens: Collection[str]) -> None:
        self.pattern = control_pattern(tokens)
        self._tokens = sorted(tokens)

    def found_in(self, *texts: str) -> bool:
        """Whether any of the texts names a control token."""
        return any(self.pattern.search(text) is not None for text in texts)

    def count(self, text: str) -> int:
        """Number of control tokens named in a text."""
        return sum(1 for _ in self.pattern.finditer(text))

    def spans(self, text: str) -> list[int]:
        """Positions of control-token names in a text: `[start, end, start, end, …]` in characters."""
        return [place for match in self.pattern.finditer(text) for place in match.span()]

    def split(self, text: str) -> list[str]:
        """Ordinary text and control tokens, alternating, ordinary text first."""
        return re.split(f"({self.pattern.pattern})", text)

    def plane_for(self, *texts: str) -> int | None:
        """First of a range of private characters that occur in none of the texts; None if there is no such range.

        The range has a character for each control token, and two more (see `marks`).
        """
        for plane in _PRIVATE_PLANES:
            private = re.compile(f"[{chr(plane)}-{self.marks(plane)[1]}]")
            if not any(private.search(text) for text in texts):
                return plane
        return None

    def marks(self, plane: int) -> tuple[str, str]:
        """Two more private characters of a range, to mark where a text begins and ends."""
        return chr(plane + len(self._tokens)), chr(plane + len(self._tokens) + 1)

    def hide(self, text: str, plane: int) -> str:
        """Replace each control token by its private character."""
        return self.pattern.sub(lambda match: chr(plane + self._tokens.index(match[0])), text)

    def reveal(self, text: str, plane: int) -> tuple[str, list[int]]:
        """Undo `hide` in rendered text.

        Returns:
            the text, and the positions of the template's control tokens: `[start, end, start, end, …]` in characters.
        """
        names = {chr(plane + number): token for number, token in enumerate(self._tokens)}
        either = re.compile(f"(?P<control>{self.pattern.pattern})|[{re.escape(''.join(names))}]")
        parts: list[str] = []
        spans: list[int] = []
        position = length = 0
        for match in either.finditer(text):
            own = match["control"]
            parts += (text[position : match.start()], own or names[match[0]])
            length += match.start() - position
            if own:
                spans += (length, length + len(own))
            length += len(parts[-1])
            position = match.end()
        return "".join([*parts, text[position:]]), spans
