"""Control tokens: which ones a tokenizer has, which mark fill-in-the-middle, and which one ends a completion."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from fim_core.config.model import FimTokenNames, ModelConfig
from fim_core.errors import FimError
from fim_core.hub import require_place

logger = logging.getLogger(__name__)

FAMILIES: dict[str, FimTokenNames] = {
    "qwen": FimTokenNames(prefix="<|fim_prefix|>", suffix="<|fim_suffix|>", middle="<|fim_middle|>"),
    "starcoder": FimTokenNames(prefix="<fim_prefix>", suffix="<fim_suffix>", middle="<fim_middle>"),
    "santacoder": FimTokenNames(prefix="<fim-prefix>", suffix="<fim-suffix>", middle="<fim-middle>"),
    # DeepSeek names the cursor's place "hole"; it stands between prefix and suffix, so it marks the suffix.
    "deepseek": FimTokenNames(prefix="<｜fim▁begin｜>", suffix="<｜fim▁hole｜>", middle="<｜fim▁end｜>"),
    "codellama": FimTokenNames(prefix="▁<PRE>", suffix="▁<SUF>", middle="▁<MID>"),
    "codestral": FimTokenNames(prefix="[PREFIX]", suffix="[SUFFIX]", middle="[MIDDLE]"),
}
"""Names by model family. Qwen's are also CodeGemma's, StarCoder's also Granite's. A family is told by its first two."""

SUFFIX_FIRST = frozenset({"codestral"})
"""Families that were trained with the suffix before the prefix only."""


@dataclass(frozen=True)
class FimTokens:
    """The control tokens of one model, as text and as ids.

    Attributes:
        prefix, suffix, middle: fill-in-the-middle markers; a prompt ends in `middle`.
        end: what a completion is trained to end with, and what the model stops at.
        end_ids: every id that stops this model when it serves, `end_id` first.
        family: a key of FAMILIES; `configured`; or `added`.
        added: tokens that were new to the tokenizer, so that the embeddings have to grow.
    """

    prefix: str
    suffix: str
    middle: str
    end: str
    prefix_id: int
    suffix_id: int
    middle_id: int
    end_id: int
    end_ids: tuple[int, ...]
    family: str
    added: tuple[str, ...]


def load_tokenizer(path_or_id: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or by hub id. Code that comes with it is never run.

    Raises:
        FimError: there is none, it needs code of its own, or it has no fast (`tokenizers`) form.
    """
    place = str(path_or_id)
    require_place(place, "tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            Path(place).expanduser() if Path(place).expanduser().is_dir() else place
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FimError(
            f"The tokenizer {place} cannot be loaded: {reason} Give a folder that holds tokenizer.json and "
            "tokenizer_config.json, or a hub id that this machine can reach (HF_HUB_OFFLINE unset)."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise FimError(
            f"The tokenizer {place} has no tokenizer.json; one is needed. Convert it with transformers first."
        )
    return tokenizer


def control_tokens(tokenizer: PreTrainedTokenizerFast | Tokenizer) -> frozenset[str]:
    """Texts that a tokenizer turns into a control token wherever they stand.

    All special tokens, and of the added tokens without the special flag those that are markup (Qwen's FIM and tool
    tokens). Added tokens that are ordinary text do not count: runs of spaces, single letters, line ends.
    """
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    added = backend.get_added_tokens_decoder().values()
    return frozenset(token.content for token in added if token.special or _is_markup(token.content))


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of all that decides how a tokenizer encodes, 16 hex digits."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the tokenizer has."""
    found = tokenizer.token_to_id(token)
    assert found is not None, f"{token} is a token of this tokenizer"
    return found


def control_pattern(tokens: Collection[str]) -> re.Pattern[str]:
    """Finds control tokens as a tokenizer does: the leftmost, and where several begin there, the longest."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def resolve_fim_tokens(tokenizer: PreTrainedTokenizerFast, model: ModelConfig) -> FimTokens:
    """Find the control tokens of a model; what is missing is added to `tokenizer`, in place.

    The FIM markers: what the experiment names, else the family that the tokenizer holds, else Qwen's names. The end
    token: what the experiment names, else what the model's own generation config stops at, else the tokenizer's
    end-of-sequence token (of a chat tokenizer that is the end of the turn).

    Raises:
        FimError: no end token can be told, or the one that is named does not exist.
    """
    id_of = tokenizer.backend_tokenizer.token_to_id
    known = {
        family: names
        for family, names in FAMILIES.items()
        if id_of(names.prefix) is not None and id_of(names.suffix) is not None
    }
    family, names = next(iter(known.items()), ("added", FAMILIES["qwen"]))
    if model.fim_tokens is not None:
        family = next((name for name, tokens in known.items() if tokens == model.fim_tokens), "configured")
        names = model.fim_tokens
    texts = (names.prefix, names.suffix, names.middle)
    if len(set(texts)) != 3 or not all(texts):
        raise FimError("model.fim_tokens needs three different tokens: prefix, suffix and middle.")
    already = control_tokens(tokenizer)
    added = tuple(text for text in texts if id_of(text) is None)
    # A name that is only an entry of the vocabulary is not matched as a whole until it is an added token as well.
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts if text not in already])
    end_ids = _end_ids(tokenizer, model)
    prefix_id, suffix_id, middle_id = (token_id(tokenizer.backend_tokenizer, text) for text in texts)
    return FimTokens(
        *texts,
        end=str(tokenizer.convert_ids_to_tokens(end_ids[0])),
        prefix_id=prefix_id,
        suffix_id=suffix_id,
        middle_id=middle_id,
        end_id=end_ids[0],
        end_ids=end_ids,
        family=family,
        added=added,
    )


def _is_markup(text: str) -> bool:
    core = text.strip().lstrip("▁")
    return len(core) >= 3 and (core[0], core[-1]) in {("<", ">"), ("[", "]")}


def _end_ids(tokenizer: PreTrainedTokenizerFast, model: ModelConfig) -> tuple[int, ...]:
    served = _generation_end_ids(model)
    eos = tokenizer.eos_token_id
    if model.end_token is not None:
        end = tokenizer.backend_tokenizer.token_to_id(model.end_token)
        if end is None:
            raise FimError(
                f"model.end_token {model.end_token} is no token of this tokenizer. Name one that it has, "
                f"for example {tokenizer.eos_token}, or leave the key out."
            )
    elif served:
        end = eos if eos in served else served[0]
    elif eos is not None:
        end = eos
    else:
        raise FimError(
            "Neither the model's generation config nor its tokenizer says which token ends a text. Set model.end_token."
        )
    outside = [token for token in served if tokenizer.convert_ids_to_tokens(token) is None]
    if outside:
        raise FimError(
            f"The generation config of {model.name_or_path} stops at token {outside[0]}, which its tokenizer does not "
            "have. Check that model.tokenizer belongs to the model, or set model.end_token."
        )
    return (end, *(token for token in served if token != end))


def _generation_end_ids(model: ModelConfig) -> tuple[int, ...]:
    """What the pretrained model's own generation config stops at; nothing for a model from scratch or without one."""
    if model.name_or_path is None:
        return ()
    try:
        generation = GenerationConfig.from_pretrained(model.name_or_path)
    except OSError:
        logger.info("%s has no generation config; its tokenizer says where a text ends.", model.name_or_path)
        return ()
    ends = generation.eos_token_id
    if ends is None:
        return ()
    return (ends,) if isinstance(ends, int) else tuple(ends)
