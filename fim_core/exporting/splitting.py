"""How a tokenizer splits text, in the terms of llama.cpp.

llama.cpp splits text with code of its own, chosen by `tokenizer.ggml.model` and `tokenizer.ggml.pre`. A tokenizer that has no
counterpart there is refused: the file would load, and the model would read other tokens than in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from fim_core.errors import FimError

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE = {
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
}
"""`tokenizer.ggml.pre` by regular expression and `ignore_merges` (src/llama-vocab.cpp). A tokenizer that was trained with
`model.tokenizer` has the expression of qwen2."""

_EMPTY = ({"type": "Sequence", "normalizers": []}, None)
_NFC = {"type": "NFC"}
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
"""Splits at spaces, of which `_SPACES` leaves none."""


@dataclass(frozen=True)
class Splitting:
    """How llama.cpp splits text.

    Attributes:
        model: `gpt2` is a byte-level BPE with merges; `llama` is SentencePiece, which has scores instead.
        pre: name of the split into words.
        merges: `left right`, in the order in which they apply; for `gpt2`.
        scores: by token, the higher the earlier it is merged; for `llama`.
        skips_nfc: the tokenizer normalizes text to NFC, which llama.cpp does not.
    """

    model: Literal["gpt2", "llama"]
    pre: str
    merges: list[str]
    scores: dict[str, float]
    skips_nfc: bool = False


def splitting_of(tokenizer: dict[str, Any]) -> Splitting:
    """The counterpart of a tokenizer, given the content of its tokenizer.json.

    Raises:
        FimError: there is none.
    """
    model = tokenizer["model"]
    if model["type"] != "BPE" or model.get("dropout"):
        raise _refusal(f"its model is {model['type']}")
    edges = [token["content"] for token in tokenizer["added_tokens"] if _has_edges(token)]
    if edges:
        raise _refusal(f"its token {edges[0]} takes the space around it, or must be a whole word")
    return _sentencepiece(tokenizer) if model.get("byte_fallback") else _byte_level(tokenizer)


def _byte_level(tokenizer: dict[str, Any]) -> Splitting:
    model, normalizer = tokenizer["model"], tokenizer["normalizer"]
    if normalizer not in (*_EMPTY, _NFC):
        raise _refusal(f"it changes text before splitting it ({normalizer['type']})")
    expression = _expression(tokenizer["pre_tokenizer"] or {})
    pre = _PRE.get((expression or "", bool(model.get("ignore_merges"))))
    if pre is None or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal(f"it splits words by another rule than {' and '.join(_PRE.values())}")
    return Splitting("gpt2", pre, [f"{left} {right}" for left, right in model["merges"]], {}, normalizer == _NFC)


def _expression(pre_tokenizer: dict[str, Any]) -> str | None:
    """The regular expression of a byte-level pre-tokenizer of the usual form."""
    match pre_tokenizer:
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(expression)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return expression
    return None


def _sentencepiece(tokenizer: dict[str, Any]) -> Splitting:
    model = tokenizer["model"]
    if tokenizer["normalizer"] != _SPACES or tokenizer["pre_tokenizer"] not in (None, _NO_SPLIT):
        raise _refusal("it has byte fallback, but changes or splits text in another way than Gemma's")
    return Splitting("llama", "default", [], scores_of_merges(model["merges"], model["vocab"]))


def scores_of_merges(merges: list[list[str]], vocabulary: dict[str, int]) -> dict[str, float]:
    """Scores by which SentencePiece merges in the order of a list of merges.

    SentencePiece joins the two neighbours whose union has the highest score, whichever tokens they are. That is the same
    only if all merges to one token are consecutive, and every two tokens whose union is such a token may merge.

    Raises:
        FimError: it is not the same.
    """
    unions = [left + right for left, right in merges]
    ranks = {union: rank for rank, union in reversed(list(enumerate(unions)))}
    allowed = {(left, right) for left, right in merges}
    changes = sum(first != second for first, second in pairwise(unions)) + bool(unions)
    is_complete = all(
        (union[:cut], union[cut:]) in allowed
        for union in ranks
        for cut in range(1, len(union))
        if union[:cut] in vocabulary and union[cut:] in vocabulary
    )
    if changes != len(ranks) or not is_complete:
        raise _refusal("its merges have an order that scores cannot express")
    # Only merges to a token need its score; tokens without merges come last.
    return {token: -float(ranks.get(token, len(merges))) for token in vocabulary}


def _has_edges(token: dict[str, Any]) -> bool:
    return any(token[option] for option in ("lstrip", "rstrip", "single_word"))


def _refusal(cause: str) -> FimError:
    return FimError(
        f"llama.cpp has no way of splitting text that is known to equal this tokenizer's: {cause}. The model would read other "
        "tokens than in training. Serve it with `fim serve`, or train from a Qwen, Llama 3 or Gemma 3 model."
    )
