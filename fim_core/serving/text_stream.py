"""From tokens to text as they arrive: never half a character, never the start of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from fim_core.tokenization.encoder import TextEncoder

_UNDECODABLE = "\ufffd"


class TextStream:
    """The text of a completion that is still being generated.

    Args:
        encoder: of the model's tokenizer.
        stop: strings that end the completion and are not part of it.
    """

    def __init__(self, encoder: TextEncoder, stop: Sequence[str] = ()) -> None:
        self._encoder = encoder
        self._stop = stop
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False
        """A stop string has been found; nothing more will come."""

    def add(self, token_id: int) -> str:
        """Take one more token; returns the text that is certain now and has not been returned yet."""
        self._ids.append(token_id)
        # A character may span tokens, and a stop string too.
        text = self._until_stop(self._encoder.decode(self._ids).rstrip(_UNDECODABLE))
        return self._send(text if self.stopped else text[: len(text) - self._maybe_stop(text)])

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        return "" if self.stopped else self._send(self._until_stop(self._encoder.decode(self._ids)))

    def _send(self, text: str) -> str:
        piece = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return piece

    def _until_stop(self, text: str) -> str:
        """The text before the stop string that is complete first, however the text is cut into tokens."""
        ends = [(place + len(stop), place) for stop in self._stop if (place := text.find(stop)) >= 0]
        self.stopped = bool(ends)
        return text[: min(ends)[1]] if ends else text

    def _maybe_stop(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string starts with."""
        return max((_overlap(text, stop) for stop in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a start of `stop`, and not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
