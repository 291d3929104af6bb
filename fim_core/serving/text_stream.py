"""Incremental decoding of tokens to text, without incomplete characters and stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from fim_core.tokenization.encoder import TextEncoder

_UNDECODABLE = "\ufffd"


class TextStream:
    """The text of a completion that is still being generated.

    Args:
        encoder: encoder of the model's tokenizer.
        stop: strings that end the completion and are not part of it.
    """

    def __init__(self, encoder: TextEncoder, stop: Sequence[str] = ()) -> None:
        self._encoder = encoder
        self._stop = stop
        self._ids: list[int] = []
        self._sent = 0
        self.stopped = False
        """Whether a stop string has been found, which ends the text."""

    def add(self, token_id: int) -> str:
        """Add a token; returns the text that is now certain and was not returned before."""
        self._ids.append(token_id)
        # A character or a stop string may span several tokens.
        text = self._until_stop(self._encoder.decode(self._ids).rstrip(_UNDECODABLE))
        return self._send(text if self.stopped else text[: len(text) - self._maybe_stop(text)])

    def finish(self) -> str:
        """Return the text that was held back, after the last token."""
        return "" if self.stopped else self._send(self._until_stop(self._encoder.decode(self._ids)))

    def _send(self, text: str) -> str:
        piece = text[self._sent :]
        self._sent = max(self._sent, len(text))
        return piece

    def _until_stop(self, text: str) -> str:
        """The text before the stop string that ends first, independent of the split into tokens."""
        ends = [(place + len(stop), place) for stop in self._stop if (place := text.find(stop)) >= 0]
        self.stopped = bool(ends)
        return text[: min(ends)[1]] if ends else text

    def _maybe_stop(self, text: str) -> int:
        """Length of the longest end of `text` that may be the start of a stop string."""
        return max((_overlap(text, stop) for stop in self._stop), default=0)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper prefix of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
