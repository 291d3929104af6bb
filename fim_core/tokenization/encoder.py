"""Text to token ids, piece by piece, with the ids that the tokenizer gives the whole text at once.

A tokenizer splits at its control tokens before anything else, so what stands between them encodes independently: each
distinct piece has to be encoded only once, however many rows hold it. User text between control tokens is encoded with
the tokenizer made blind to control tokens, so it cannot become one.

Where the pre-tokenizer is one of the well-known regular expressions that never join a line end with what follows,
pieces are cut further, at line ends (`_LINE_END`): lines repeat far more often than whole contexts do.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer

from fim_core.tokens import control_pattern, control_tokens, token_id

Piece = str | int
"""A stretch of ordinary text, or the id of a control token."""

Granularity = Literal["line", "segment", "whole"]

# A line end before a line that begins, after indentation, with a visible ASCII character. `\s*[\r\n]+` ends a token
# exactly there, whatever else the white space around it holds.
_LINE_END = re.compile(r"\n(?=[ \t]*[!-~])")

# Alternatives of GPT-4-like pre-tokenizers in which a line end can only be followed by more line ends.
_WORDS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
}
_WHITE_SPACE = r"|\s*[\r\n]+|\s+(?!\S)|\s+"

_PROBES = (
    *(
        "SELECT a.b, c1\nFROM t\n",
        " WHERE x",
        "y ",
        "  ",
        "\n",
        "\n\n  z",
        "\t\tq\t",
        "'it''s'",
        "1",
        "12345.6",
        "_",
        "\r\n",
    ),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "漢字",
        "🙂",
        "\u00a0",
        "\u200b",
        "\x1c",
        "<|",
        "|>",
        "▁",
        "/*\n*/",
        "a \n\t\n b\n\r\n;c",
    ),
)


class TextEncoder:
    """Encodes texts that hold control tokens, as the tokenizer does with `add_special_tokens=False`.

    Args:
        tokenizer: the encoder's own from now on; its control tokens become special.

    Attributes:
        controls: the control tokens and their ids.
        pattern: finds control tokens as the tokenizer does.
        granularity: what encodes independently: lines, segments between control tokens, or only whole texts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.controls = {text: token_id(tokenizer, text) for text in sorted(control_tokens(tokenizer))}
        self.pattern = control_pattern(self.controls)
        self._splitter = re.compile(f"({self.pattern.pattern})")
        self._tokenizer = tokenizer
        # A server encodes from several threads, and each needs its own setting of the tokenizer.
        self._lock = threading.Lock()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # So that `encode_special_tokens` makes the tokenizer blind to all of them; all else about them stays.
        tokenizer.add_special_tokens(
            [
                AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=True,
                )
                for token in tokenizer.get_added_tokens_decoder().values()
                if token.content in self.controls
            ]
        )
        self.granularity: Granularity = self._finest()

    @property
    def notice(self) -> str:
        """How texts are cut, in a few words."""
        return {
            "line": "distinct lines encoded once",
            "segment": "distinct segments between control tokens encoded once",
            "whole": "this tokenizer does not encode pieces independently: every row encoded whole",
        }[self.granularity]

    def encode(self, text: str, control_spans: Sequence[int] | None = None) -> list[int]:
        """Token ids of one text; `control_spans` as in `pieces`."""
        if control_spans is None:
            return self._encode([text], blind=False)[0].ids
        return self.join(self.pieces(text, control_spans))

    def pieces(self, text: str, control_spans: Sequence[int] | None = None) -> list[Piece]:
        """Cut a text into control tokens and the segments between them, which encode independently.

        Args:
            text: the text, control tokens written out.
            control_spans: where control tokens stand, `[start, end, start, end, …]` in characters; what looks like one
                elsewhere is ordinary text. None: wherever the tokenizer finds them.
        """
        if self.granularity == "whole":
            assert control_spans is None, "a tokenizer of whole texts cannot tell control tokens from user text"
            return [text] if text else []
        pieces: list[Piece] = []
        if control_spans is None:
            # Ordinary text and control tokens in turns.
            for number, part in enumerate(self._splitter.split(text)):
                if number % 2:
                    pieces.append(self.controls[part])
                elif part:
                    pieces.append(part)
            return pieces
        position = 0
        for start, end in zip(control_spans[::2], control_spans[1::2], strict=True):
            if position < start:
                pieces.append(text[position:start])
            pieces.append(self.controls[text[start:end]])
            position = end
        if position < len(text):
            pieces.append(text[position:])
        return pieces

    def lines(self, piece: Piece) -> list[Piece]:
        """Cut a piece further, where lines encode independently."""
        if self.granularity != "line" or isinstance(piece, int) or "\n" not in piece:
            return [piece]
        *lines, last = _LINE_END.split(piece)
        return [*[line + "\n" for line in lines], last]

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int32) of each text piece; several threads at once unless TOKENIZERS_PARALLELISM says no."""
        encodings = self._encode(texts, blind=self.granularity != "whole")
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def join(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of pieces, one after the other."""
        lines = [line for piece in pieces for line in self.lines(piece)]
        texts = iter(self.encode_pieces([line for line in lines if isinstance(line, str)]))
        return list(itertools.chain.from_iterable([p] if isinstance(p, int) else next(texts).tolist() for p in lines))

    def encode_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a whole text and where each token stands in it, in characters."""
        with self._lock:
            self._tokenizer.encode_special_tokens = False
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def agrees(self, text: str) -> bool:
        """Whether the pieces of a text give the ids of the whole text."""
        return self.join(self.pieces(text)) == self.encode(text)

    def fall_back(self) -> None:
        """Encode whole texts from now on."""
        self.granularity = "whole"

    def _encode(self, texts: Sequence[str], *, blind: bool) -> list[Encoding]:
        """Encode texts; `blind`: control tokens are ordinary text."""
        with self._lock:
            self._tokenizer.encode_special_tokens = blind
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    def _finest(self) -> Granularity:
        added = self._tokenizer.get_added_tokens_decoder().values()
        if any(token.lstrip or token.rstrip or token.single_word for token in added):
            return "whole"
        ids = set(self.controls.values())
        hidden = self._encode([f"a{control}b" for control in self.controls], blind=True)
        if any(ids.intersection(encoding.ids) for encoding in hidden):
            return "whole"
        self.granularity = "line" if self._ends_tokens_at_line_ends() else "segment"
        return self.granularity if all(self.agrees(text) for text in self._probe_texts()) else "whole"

    def _probe_texts(self) -> Iterable[str]:
        # Each probe beside each other one, on both sides. Some tokenizers reserve hundreds of control tokens, all alike.
        for probe in _PROBES:
            yield probe + probe.join(_PROBES)
        for control in list(self.controls)[:16]:
            yield control + control.join(_PROBES) + control

    def _ends_tokens_at_line_ends(self) -> bool:
        normalizer, pre_tokenizer = _spec(self._tokenizer.normalizer), _spec(self._tokenizer.pre_tokenizer)
        if any("\n" in token.content for token in self._tokenizer.get_added_tokens_decoder().values()):
            return False
        if not _keeps_line_ends(normalizer):
            return False
        match pre_tokenizer.get("pretokenizers"):
            case [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ] if regex.endswith(_WHITE_SPACE):
                return _alternatives(regex.removesuffix(_WHITE_SPACE)) <= _WORDS
        return False


def _alternatives(regex: str) -> set[str]:
    """The alternatives of a regular expression at its outermost level."""
    found, depth, start = set(), 0, 0
    for position, mark in enumerate(regex):
        depth += (mark == "(") - (mark == ")")
        if mark == "|" and depth == 0:
            found.add(regex[start:position])
            start = position + 1
    return found | {regex[start:]}


def _spec(component: Any) -> dict[str, Any]:
    """A part of a tokenizer as `tokenizer.json` writes it; empty where there is none."""
    return json.loads(component.__getstate__()) if component is not None else {}


def _keeps_line_ends(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer treats each line by itself; canonical composition never reaches across a line end."""
    if not normalizer or normalizer["type"] == "NFC":
        return True
    return normalizer["type"] == "Sequence" and all(map(_keeps_line_ends, normalizer["normalizers"]))
