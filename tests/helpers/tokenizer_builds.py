"""Tokenizers of every combination of model, normalizer, pre-tokenizer and flags of the added tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from small_tokenizers import TEXTS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MARKERS = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
TOKENS = ["<unk>", "<s>", "</s>", *MARKERS]
SAMPLE = [*TEXTS, "".join(map(chr, range(32, 127))), "\n\t▁é漢"]

NORMALIZERS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "NFC": normalizers.NFC,
    "NFKC": normalizers.NFKC,
    "lowercase": normalizers.Lowercase,
    "accents": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "strip": normalizers.Strip,
    "invisible": lambda: normalizers.Replace("\u200b", ""),
    "llama": lambda: normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "gemma": lambda: normalizers.Replace(" ", "▁"),
}
PRE_TOKENIZERS: dict[str, Callable[[], tuple[object, object]]] = {
    "bytes": lambda: (pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "bytes, space in front": lambda: (pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()),
    "metaspace first": lambda: _metaspace("first"),
    "metaspace always": lambda: _metaspace("always"),
    "metaspace never": lambda: _metaspace("never"),
    "words": lambda: (pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()),
    "none": lambda: (None, decoders.Fuse()),
}
MODELS = ("BPE", "BPE, merges ignored", "Unigram", "WordPiece", "WordLevel")


def _metaspace(scheme: str) -> tuple[object, object]:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False), decoders.Metaspace(prepend_scheme=scheme)


class Flags(NamedTuple):
    """Of every control token; `vocab`: the model has them in its vocabulary as well."""

    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False
    vocab: bool = True


@cache
def made(model: str, normalizer: str, pre_tokenizer: str, flags: Flags) -> PreTrainedTokenizerFast:
    """A tokenizer of this build, with the control tokens of CodeLlama."""
    alphabet = sorted({mark for text in SAMPLE for mark in text} | set(pre_tokenizers.ByteLevel.alphabet()))
    words = [*alphabet, "▁▁", "select", "▁select", "##x", *(f"##{mark}" for mark in alphabet)]
    vocab = dict.fromkeys(["<unk>", *(TOKENS if flags.vocab else []), *words])
    ids = {word: number for number, word in enumerate(vocab)}
    match model:
        case "Unigram":
            # Control tokens are the likeliest words of all.
            scores = [(word, 0.0 if word in TOKENS else -float(1 + len(word))) for word in ids]
            backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
        case "WordPiece":
            backend = Tokenizer(models.WordPiece(ids, unk_token="<unk>", max_input_chars_per_word=200))
        case "WordLevel":
            backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
        case _:
            merges = [("s", "e"), ("l", "e"), ("▁", "▁")]
            ids |= {"".join(pair): len(ids) + place for place, pair in enumerate(merges) if "".join(pair) not in ids}
            backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", ignore_merges="ignored" in model))
    if (given_normalizer := NORMALIZERS[normalizer]()) is not None:
        backend.normalizer = given_normalizer
    before, backend.decoder = PRE_TOKENIZERS[pre_tokenizer]()
    if before is not None:
        backend.pre_tokenizer = before
    how = flags._asdict()
    how.pop("vocab")
    backend.add_tokens([AddedToken(token, special=token != "▁<EOT>", **how) for token in TOKENS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
