"""Encoding text with control tokens, and decoding completions.

A tokenizer splits at its control tokens before anything else, so the text between them is encoded independently: each
distinct piece has to be encoded only once, however many rows contain it. Control tokens get their ids by position. The
text between them is encoded with a tokenizer that does not match control tokens, white space at its ends included,
regardless of their flags (`lstrip`, `rstrip`, `single_word`).

Some models can still produce a control token from text: Unigram and WordPiece look words up in a vocabulary that
contains control tokens, and so does BPE that ignores merges. So ids are checked, not text: the ids of user text
(`reads_control`), and those of a finished row position by position (`is_control`).

Some tokenizers treat the start of a text differently (they add a mark for a space before the first word), so that " x"
and "x" have the same ids at the start. For these, an anchor token is put before each text when encoding and decoding, and
removed afterwards.

If the pre-tokenizer is one of the well-known regular expressions that never join a line end with the following text,
pieces are split further at line ends (`_LINE_END`): lines repeat far more often than whole contexts.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import secrets
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from tokenizers import AddedToken, Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from fim_core.prompt_format.tokens import FimTokens, control_pattern, control_tokens, is_spelled_out, token_id

Piece = str | int
"""A piece of ordinary text, or the id of a control token."""

Granularity = Literal["line", "segment"]

# A line end before a line that begins, after indentation, with a visible ASCII character. `\s*[\r\n]+` ends a token
# exactly there, whatever white space is around it.
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

# Probes for special treatment of the start of a text.
_STARTS = ("x", " x", "  x", "\nx", "x y", " ", "(x", " (x")
# A private-use character.
_UNKNOWN = "\U000f7a3c"

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
    """Encodes texts with control tokens, and decodes completions.

    Args:
        tokenizer: encodes and decodes.
        fim: the control tokens in use; None if unknown.
        takes_over: nothing else uses `tokenizer`, so it is not copied.

    Attributes:
        controls: the control tokens and their ids.
        pattern: finds control tokens as the tokenizer does.
        granularity: the units that are encoded independently: lines, or segments between control tokens.
        is_control: bool [largest id + 1], whether user text must not be encoded as this id. The unknown token is
            allowed, unless it is also used as a control token.
        is_literal: see `is_spelled_out`.
        is_lossless: decoding restores every text unchanged.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, fim: FimTokens | None = None, *, takes_over: bool = False
    ) -> None:
        self.is_literal = is_spelled_out(tokenizer, fim)
        backend = tokenizer.backend_tokenizer
        self._tokenizer: Tokenizer = backend if takes_over else copy.deepcopy(backend)
        self.controls = {text: token_id(self._tokenizer, text) for text in sorted(control_tokens(tokenizer, fim))}
        self._control_ids = frozenset(self.controls.values())
        self.pattern = control_pattern(self.controls)
        self._splitter = re.compile(f"({self.pattern.pattern})")
        # A server encodes in several threads, and each needs its own settings of the tokenizer.
        self._lock = threading.Lock()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._has_flags = any(token.lstrip or token.rstrip or token.single_word for token in added)
        # `encode_special_tokens` makes the tokenizer ignore special tokens only, so all control tokens become special.
        self._tokenizer.add_special_tokens(
            [
                AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=True,
                )
                for token in added
                if token.content in self.controls
            ]
        )
        # Random, so that no text contains it.
        self._anchor = f"\ue000{secrets.token_hex(16)}\ue001"
        self._tokenizer.add_tokens([AddedToken(self._anchor, special=False, normalized=False)])
        self._anchor_id = token_id(self._tokenizer, self._anchor)
        plain, behind_anchor = (self._texts_kept(anchors) for anchors in (False, True))
        self._anchors = behind_anchor > plain
        self.is_control = self._forbidden(tokenizer, fim)
        normalizer, decoder = (
            _spec(part).get("type") for part in (self._tokenizer.normalizer, self._tokenizer.decoder)
        )
        keeps_starts = max(plain, behind_anchor) == len(_STARTS)
        self._keeps_ascii = keeps_starts and decoder == "ByteLevel" and normalizer in (None, "NFC")
        self.is_lossless = self._keeps_ascii and normalizer is None
        self.granularity: Granularity = self._finest()

    @property
    def notice(self) -> str:
        """How texts are split, in a few words."""
        return {
            "line": "distinct lines encoded once",
            "segment": "distinct segments between control tokens encoded once",
        }[self.granularity]

    def encode(self, text: str, control_spans: Sequence[int] | None = None) -> list[int]:
        """Token ids of one text; `control_spans` as in `pieces`."""
        return self.join(self.pieces(text, control_spans))

    def pieces(self, text: str, control_spans: Sequence[int] | None = None) -> list[Piece]:
        """Cut a text into control tokens and the segments between them, which encode independently.

        Args:
            text: the text, control tokens written out.
            control_spans: positions of control tokens, `[start, end, start, end, …]` in characters; their names elsewhere
                are ordinary text. None: wherever the tokenizer finds them.
        """
        pieces: list[Piece] = []
        if control_spans is None:
            # Ordinary text and control tokens alternate.
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
        """Split a piece into lines, if lines are encoded independently."""
        if self.granularity != "line" or isinstance(piece, int) or "\n" not in piece:
            return [piece]
        *lines, last = _LINE_END.split(piece)
        return [*[line + "\n" for line in lines], last]

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids (int32) of each text piece; in several threads unless TOKENIZERS_PARALLELISM is false."""
        return [np.array(ids, np.int32) for ids in self._ids(texts, blind=True)]

    def join(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of pieces, one after the other."""
        lines = [line for piece in pieces for line in self.lines(piece)]
        texts = iter(self.encode_pieces([line for line in lines if isinstance(line, str)]))
        return list(itertools.chain.from_iterable([p] if isinstance(p, int) else next(texts).tolist() for p in lines))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a completion's ids, with white space as generated and without control tokens."""
        text = [token for token in map(int, ids) if token not in self._control_ids]
        if not self._anchors:
            return self._tokenizer.decode(text, skip_special_tokens=False)
        return self._tokenizer.decode([self._anchor_id, *text], skip_special_tokens=False).removeprefix(self._anchor)

    def changed_by(self, text: str) -> str | None:
        """The text decoded from the ids of a text, if it differs (normalisation, unknown characters); else None."""
        if self.is_lossless or (self._keeps_ascii and text.isascii()):
            return None
        found = self.decode(self.encode_pieces([text])[0].tolist())
        return None if found == text else found

    def reads_control(self, text: str, *, blind: bool) -> bool:
        """Whether user text is encoded as a control token.

        Args:
            blind: encode it as `encode_pieces` does; False: as the tokenizer does by default.
        """
        if not blind and self.pattern.search(text) is not None:
            return True
        return not self.is_literal and bool(self.is_control[self._ids([text], blind=blind)[0]].any())

    def agrees(self, text: str) -> bool:
        """Whether encoding by pieces gives the same ids as encoding the whole text."""
        with self._lock:
            self._tokenizer.encode_special_tokens = False
            whole = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self.encode(text) == whole

    def lines_agree(self, text: str) -> bool:
        """Whether encoding by lines gives the same ids as encoding by segments."""
        segments = [
            [piece] if isinstance(piece, int) else self._ids([piece], blind=True)[0] for piece in self.pieces(text)
        ]
        return self.encode(text) == list(itertools.chain.from_iterable(segments))

    def fall_back(self) -> None:
        """Split at control tokens only from now on."""
        self.granularity = "segment"

    def _ids(self, texts: Sequence[str], *, blind: bool) -> list[list[int]]:
        """Ids of texts, without the anchor's; `blind`: control tokens are ordinary text."""
        if not self._anchors:
            return [encoding.ids for encoding in self._encode(texts, blind=blind)]
        return [encoding.ids[1:] for encoding in self._encode([self._anchor + text for text in texts], blind=blind)]

    def _encode(self, texts: Sequence[str], *, blind: bool) -> list[Encoding]:
        with self._lock:
            self._tokenizer.encode_special_tokens = blind
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)

    def _texts_kept(self, anchors: bool) -> int:
        """How many of _STARTS are restored from their ids, with or without an anchor."""
        self._anchors = anchors
        ids = self._ids(_STARTS, blind=True)
        return sum(self.decode(found) == text for found, text in zip(ids, _STARTS, strict=True))

    def _forbidden(self, tokenizer: PreTrainedTokenizerFast, fim: FimTokens | None) -> np.ndarray:
        table = np.zeros(max(self._tokenizer.get_vocab().values()) + 1, np.bool_)
        table[[*self.controls.values(), self._anchor_id]] = True
        in_use = {tokenizer.eos_token_id, tokenizer.bos_token_id, *(fim.end_ids if fim else ())}
        unknown = set(self._ids([_UNKNOWN], blind=True)[0]) - in_use
        table[list(unknown)] = False
        return table

    def _finest(self) -> Granularity:
        if not self._ends_tokens_at_line_ends():
            return "segment"
        self.granularity = "line"
        return "line" if all(self.lines_agree(text) for text in self._probe_texts()) else "segment"

    def _probe_texts(self) -> Iterable[str]:
        # Every ordered pair of probes.
        for probe in _PROBES:
            yield probe + probe.join(_PROBES)

    def _ends_tokens_at_line_ends(self) -> bool:
        normalizer, pre_tokenizer = _spec(self._tokenizer.normalizer), _spec(self._tokenizer.pre_tokenizer)
        if self._has_flags or self._anchors:
            return False
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
    """The top-level alternatives of a regular expression."""
    found, depth, start = set(), 0, 0
    for position, mark in enumerate(regex):
        depth += (mark == "(") - (mark == ")")
        if mark == "|" and depth == 0:
            found.add(regex[start:position])
            start = position + 1
    return found | {regex[start:]}


def _spec(component: Any) -> dict[str, Any]:
    """A component of a tokenizer as in `tokenizer.json`; empty if it is missing or an empty sequence."""
    spec: dict[str, Any] = json.loads(component.__getstate__()) if component is not None else {}
    return {} if spec == {"type": "Sequence", "normalizers": []} else spec


def _keeps_line_ends(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer treats lines independently; canonical composition never crosses a line end."""
    if not normalizer or normalizer["type"] == "NFC":
        return True
    return normalizer["type"] == "Sequence" and all(map(_keeps_line_ends, normalizer["normalizers"]))
