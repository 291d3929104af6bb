"""The vocabulary of a GGUF file: tokens with their types, and which of them begin, end and mark a completion."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerFast

from fim_core.errors import FimError
from fim_core.exporting.splitting import Splitting, splitting_of
from fim_core.prompt_format.tokens import FimTokens, control_tokens, token_id

_ENDS_BY_NAME = frozenset(
    {
        *("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<｜end▁of▁sentence｜>"),
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<EOT>"),
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|repo_name|>", "<reponame>", "<|file_sep|>"),
    }
)
"""Tokens at which llama.cpp stops because of their names (src/llama-vocab.cpp)."""

_END_KEYS = ("eot", "eom")
"""Fields for two more end tokens, after `eos`."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp knows about a tokenizer.

    Attributes:
        tokens, types: of every row of the embedding.
        special_ids: ids by the name of their field, such as `eos` and `fim_pre`.
        starts_with_bos: whether text begins with the start token.
        other_ends: tokens that end a completion in serving, but have no field in GGUF.
    """

    splitting: Splitting
    tokens: list[str]
    types: list[TokenType]
    special_ids: dict[str, int]
    starts_with_bos: bool
    other_ends: tuple[str, ...]

    def add_to(self, writer: GGUFWriter) -> None:
        """Add the vocabulary to a file."""
        writer.add_tokenizer_model(self.splitting.model)
        writer.add_tokenizer_pre(self.splitting.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.splitting.model == "gpt2":
            writer.add_token_merges(self.splitting.merges)
        else:
            last = min(self.splitting.scores.values())
            writer.add_token_scores([self.splitting.scores.get(token, last) for token in self.tokens])
            writer.add_add_space_prefix(False)
        for name, number in self.special_ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        writer.add_add_bos_token(self.starts_with_bos)
        writer.add_add_eos_token(False)


def vocabulary_of(
    tokenizer: PreTrainedTokenizerFast, fim: FimTokens, *, rows: int, end_ids: Sequence[int], starts_with_bos: bool
) -> Vocabulary:
    """Convert a tokenizer.

    Args:
        fim: control tokens of the prompts.
        rows: of the embedding; those without a token are filled up with unused ones.
        end_ids: `eos_token_id` of the generation config, the trained one first.
        starts_with_bos: whether the tokenizer begins text with the start token.

    Raises:
        FimError: llama.cpp would split text in another way, or the model lacks embeddings.
    """
    backend = tokenizer.backend_tokenizer
    splitting = splitting_of(json.loads(backend.to_str()))
    known, added = backend.get_vocab(with_added_tokens=True), backend.get_added_tokens_decoder()
    if max(known.values()) >= rows:
        raise FimError(
            f"The tokenizer has token {max(known.values())}, but the model has only {rows} embeddings. Copy the whole "
            "checkpoint again."
        )
    is_sentencepiece = splitting.model == "llama"
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [TokenType.UNUSED] * rows
    for text, number in known.items():
        tokens[number] = text
        types[number] = TokenType.BYTE if is_sentencepiece and _BYTE.fullmatch(text) else TokenType.NORMAL
    for number, token in added.items():
        # llama.cpp looks for these in the text as it is, before spaces become ▁.
        tokens[number] = token.content.replace("▁", " ") if is_sentencepiece else token.content
        types[number] = TokenType.USER_DEFINED
    for text in control_tokens(tokenizer, fim):
        number = token_id(backend, text)
        tokens[number], types[number] = text, TokenType.CONTROL
    special_ids, other_ends = _special_ids(tokenizer, fim, end_ids)
    return Vocabulary(splitting, tokens, types, special_ids, starts_with_bos, other_ends)


def _special_ids(
    tokenizer: PreTrainedTokenizerFast, fim: FimTokens, end_ids: Sequence[int]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Ids by field, and the texts of end tokens without a field."""
    markers = {"fim_pre": fim.prefix_id, "fim_suf": fim.suffix_id, "fim_mid": fim.middle_id}
    optional = {
        "bos": tokenizer.bos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    text_of = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in end_ids}
    others = [number for number in end_ids[1:] if text_of[number] not in _ENDS_BY_NAME]
    with_field = [number for number in others if number not in markers.values()][: len(_END_KEYS)]
    ids = {
        "eos": end_ids[0],
        **markers,
        **{name: number for name, number in optional.items() if number is not None},
        **dict(zip(_END_KEYS, with_field, strict=False)),
    }
    return ids, tuple(text_of[number] for number in others if number not in with_field)
