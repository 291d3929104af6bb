"""Small tokenizers of every kind that the code distinguishes, and settings of property tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["select a.b, 'it''s' from t\n  where x = 1;\n", "SELECT count(*)\n\nFROM events -- é\n"] * 4

O200K_LIKE = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(
    tokens: list[AddedToken | str],
    *,
    regex: str | None = None,
    chat_template: str | None = None,
    eos: str | None = None,
) -> PreTrainedTokenizerFast:
    """GPT-2's pre-tokenizer, or another regular expression."""
    tokenizer = Tokenizer(models.BPE())
    if regex is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    for token in tokens:
        tokenizer.add_tokens(
            [token if isinstance(token, AddedToken) else AddedToken(token, special=True, normalized=False)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, eos_token=eos)


class ModelTokens(NamedTuple):
    """Control tokens of a published model, its end-of-sequence token, and its end-of-turn token if it has chat markup."""

    tokens: tuple[str, ...]
    eos: str
    turn_end: str = ""


MODEL_TOKENS = {
    "qwen": ModelTokens(
        (
            *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
            *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_call>"),
        ),
        "<|endoftext|>",
        "<|im_end|>",
    ),
    "starcoder": ModelTokens(
        (
            *("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"),
            *("<filename>", "<gh_stars>", "<reponame>"),
        ),
        "<|endoftext|>",
    ),
    "starcoder2": ModelTokens(
        (
            *("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"),
            *("<repo_name>", "<file_sep>"),
        ),
        "<|endoftext|>",
    ),
    "santacoder": ModelTokens(
        ("<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"), "<|endoftext|>"
    ),
    "granite4": ModelTokens(
        (
            *("<|pad|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
            *("<|filename|>", "<|reponame|>", "<|start_of_role|>", "<|end_of_role|>"),
        ),
        "<|end_of_text|>",
        "<|end_of_text|>",
    ),
    "codegemma": ModelTokens(
        (
            *("<pad>", "<eos>", "<bos>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"),
            *("<start_of_turn>", "<end_of_turn>"),
        ),
        "<eos>",
        "<end_of_turn>",
    ),
    "codellama": ModelTokens(("<unk>", "<s>", "</s>", "▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>"), "</s>", "</s>"),
    "deepseek": ModelTokens(
        (
            *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
            *("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<|EOT|>"),
        ),
        "<｜end▁of▁sentence｜>",
        "<|EOT|>",
    ),
    "codestral": ModelTokens(("<unk>", "<s>", "</s>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"), "</s>", "</s>"),
    "gemma3": ModelTokens(("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<end_of_turn>"),
}
"""By model: those with native FIM, and one without."""


def like_model(name: str, *, chat: bool) -> PreTrainedTokenizerFast:
    """A tokenizer with the control tokens of a published model, with or without chat markup."""
    model = MODEL_TOKENS[name]
    template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '" + model.turn_end + "\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return byte_level(list(model.tokens), eos=model.eos, chat_template=template if chat else None)


def sentencepiece_like(*, scheme: str = "first") -> PreTrainedTokenizerFast:
    """Llama 2's: marks spaces, also before the first word, and begins every text with <s>."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    trainer = trainers.BpeTrainer(vocab_size=220, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "".join(map(chr, range(32, 127)))], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def long_run(short: int) -> Callable[[Any], Any]:
    """Settings of a property test: `short` cases, or 10,000 fresh ones as a `fuzz` test where FIM_FUZZ=1 is set."""
    is_long = os.environ.get("FIM_FUZZ") == "1"
    chosen = settings(
        max_examples=10_000 if is_long else short,
        derandomize=not is_long,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    return lambda test: pytest.mark.fuzz(chosen(test)) if is_long else chosen(test)
