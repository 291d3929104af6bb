"""Control tokens: which ones a tokenizer has, which mark fill-in-the-middle, and which one ends a completion."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from fim_core.atomic import read_json_as
from fim_core.config.model import ModelConfig
from fim_core.errors import FimError, first_line
from fim_core.hub import require_place
from fim_core.prompt_format.families import FAMILIES

logger = logging.getLogger(__name__)

_FAMILY_TOKENS = frozenset(
    token
    for family in FAMILIES.values()
    for token in (*family.markers, family.end, *family.stops, family.mark)
    if token
)


@dataclass(frozen=True)
class FimTokens:
    """The control tokens of one model, as text and as ids.

    Attributes:
        prefix, suffix, middle: fill-in-the-middle markers; a prompt ends in `middle`.
        end: what a completion is trained to end with.
        end_ids: every id of this tokenizer that ends a completion when the model serves, `end_id` first; they become
            `eos_token_id` of the checkpoint's generation config.
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
        folder = Path(place).expanduser()
        # Not given, transformers asks on a terminal whether to run the code.
        tokenizer = AutoTokenizer.from_pretrained(folder if folder.is_dir() else place, trust_remote_code=False)
    except Exception as error:  # the library in Rust raises this very class
        raise FimError(
            f"The tokenizer {place} cannot be loaded: {first_line(error)} Give a folder that holds tokenizer.json and "
            "tokenizer_config.json, or a hub id that this machine can reach (HF_HUB_OFFLINE unset)."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise FimError(
            f"The tokenizer {place} has no tokenizer.json; one is needed. Convert it with transformers first."
        )
    return tokenizer


def control_tokens(tokenizer: PreTrainedTokenizerFast, fim: FimTokens | None = None) -> frozenset[str]:
    """The control tokens of a tokenizer, as text: what user text must never become.

    All special tokens; of the added tokens without the special flag those that are markup and that a family or the chat
    template names (Qwen's FIM and tool tokens); and what `fim` names. Other added tokens are ordinary text, whatever
    they look like: runs of spaces, line ends, Gemma's `<h1>` and `<table>`.

    Args:
        fim: the control tokens in use, if they are known. An end token counts if it is an added token.
    """
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    named = _FAMILY_TOKENS if fim is None else _FAMILY_TOKENS | {fim.prefix, fim.suffix, fim.middle, fim.end}
    ends = frozenset(fim.end_ids if fim else ())
    template = str(tokenizer.chat_template or "")
    return frozenset(
        token.content
        for number, token in added.items()
        if token.special
        or number in ends
        or token.content in named
        or (_is_markup(token.content) and token.content in template)
    )


def is_spelled_out(tokenizer: PreTrainedTokenizerFast, fim: FimTokens | None = None) -> bool:
    """Whether text becomes a control token only where it names one, so that `control_pattern` finds all there are.

    Added tokens are matched in the text as it is, unless they are matched after normalisation. Below them the model must
    not be able to write a control token: merges never reach over the ends of a token, so BPE writes one in some text only
    if it does so for the token's own name. Unknown characters must not become one either.
    """
    backend, controls = tokenizer.backend_tokenizer, control_tokens(tokenizer, fim)
    added, model = backend.get_added_tokens_decoder().values(), backend.model
    if backend.normalizer is not None and any(token.normalized for token in added if token.content in controls):
        return False
    if all(model.token_to_id(text) is None for text in controls):
        return True
    if not isinstance(model, BPE) or model.ignore_merges or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    ends = {tokenizer.eos_token, tokenizer.bos_token, *([fim.end] if fim else ())}
    return model.unk_token not in ends - {None} and all(
        token_id(backend, text) not in [token.id for token in model.tokenize(text)] for text in controls
    )


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


def control_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The ids of `control_tokens`."""
    return frozenset(token_id(tokenizer.backend_tokenizer, text) for text in control_tokens(tokenizer))


def resolve_fim_tokens(
    tokenizer: PreTrainedTokenizerFast, model: ModelConfig, *, turn_end: str | None = None
) -> FimTokens:
    """Find the control tokens of a model; what is missing is added to `tokenizer`, in place.

    The FIM markers: what the experiment names, else the family that the tokenizer holds, else Qwen's names.

    The end token, which training writes: what the experiment names; else, for prompts with chat markup, what ends a
    turn; else the family's own; else, where the tokenizer has no FIM tokens of its own, what the model's generation
    config stops at, preferably the tokenizer's end-of-sequence token, else that token.

    A middle also ends, when the model serves, at the other tokens of the family, the FIM markers, the tokenizer's
    end-of-sequence token and what the model's generation config stops at.

    Args:
        turn_end: for prompts with chat markup, the control token that closes the assistant's turn; None: the prompts
            have no chat markup, or their turns are not closed by one.

    Raises:
        FimError: there is no end token, or the one that is named does not exist.
    """
    id_of = tokenizer.backend_tokenizer.token_to_id
    known = [
        name
        for name, family in FAMILIES.items()
        if all(id_of(text) is not None for text in (family.prefix, family.suffix, family.mark) if text)
    ]
    name, texts = (known[0], FAMILIES[known[0]].markers) if known else ("added", FAMILIES["qwen"].markers)
    if model.fim_tokens is not None:
        texts = (model.fim_tokens.prefix, model.fim_tokens.suffix, model.fim_tokens.middle)
        name = next((name for name in known if FAMILIES[name].markers == texts), "configured")
    if len(set(texts)) != 3 or not all(texts):
        raise FimError("model.fim_tokens needs three different tokens: prefix, suffix and middle.")
    family = FAMILIES.get(name)
    own = [text for text in (family.end, *family.stops) if id_of(text) is not None] if family else []
    added = tuple(text for text in texts if id_of(text) is None)
    _add_special(tokenizer, (*texts, *own))
    prefix_id, suffix_id, middle_id = markers = [token_id(tokenizer.backend_tokenizer, text) for text in texts]
    served = _generation_end_ids(tokenizer, model)
    end = turn_end or (family.end if family and family.end in own else None)
    end_id = _end_id(tokenizer, model, end, served)
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stops = [token_id(tokenizer.backend_tokenizer, text) for text in own]
    return FimTokens(
        *texts,
        end=str(tokenizer.convert_ids_to_tokens(end_id)),
        prefix_id=prefix_id,
        suffix_id=suffix_id,
        middle_id=middle_id,
        end_id=end_id,
        end_ids=tuple(dict.fromkeys([end_id, *served, *eos, *stops, *markers])),
        family=name,
        added=added,
    )


def _add_special(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> None:
    """Add tokens that are not added tokens yet: an entry of the vocabulary is not matched as a whole otherwise."""
    known = {token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts if text not in known])


def _is_ordinary_text(tokenizer: PreTrainedTokenizerFast, token: str, number: int) -> bool:
    """Whether a token is only an entry of the vocabulary, and text that spells it becomes it."""
    backend = tokenizer.backend_tokenizer
    return (
        number not in backend.get_added_tokens_decoder()
        and number in backend.encode(token, add_special_tokens=False).ids
    )


def _is_markup(text: str) -> bool:
    core = text.strip().lstrip("▁")
    return len(core) >= 3 and (core[0], core[-1]) in {("<", ">"), ("[", "]")}


def _end_id(tokenizer: PreTrainedTokenizerFast, model: ModelConfig, end: str | None, served: tuple[int, ...]) -> int:
    """The id of the token that training writes.

    Args:
        end: the token that the prompts' markup or the family asks for, if there is one.
        served: what the model's generation config stops at.
    """
    eos = tokenizer.eos_token_id
    if model.end_token is not None:
        named = tokenizer.backend_tokenizer.token_to_id(model.end_token)
        cure = f"Name a special token, for example {end or tokenizer.eos_token}, or leave the key out."
        if named is None:
            raise FimError(f"model.end_token {model.end_token} is not a token of this tokenizer. {cure}")
        if _is_ordinary_text(tokenizer, model.end_token, named):
            raise FimError(
                f"model.end_token {model.end_token} is ordinary text for this tokenizer: completions that hold it would "
                f"end there. {cure}"
            )
        _add_special(tokenizer, [model.end_token])
        return named
    if end is not None:
        return token_id(tokenizer.backend_tokenizer, end)
    if served:
        return eos if eos in served else served[0]
    if eos is None:
        raise FimError(
            "Neither the model's generation config nor its tokenizer says which token ends a text. Set model.end_token."
        )
    return eos


def require_generation_config(folder: Path) -> None:
    """Go on if a folder has no generation_config.json, or one that can be read: transformers passes over a damaged one,
    and generation would stop elsewhere.

    Raises:
        DamagedFile: it is damaged.
    """
    with suppress(FileNotFoundError):
        read_json_as(folder / "generation_config.json", dict[str, Any])


def _generation_end_ids(tokenizer: PreTrainedTokenizerFast, model: ModelConfig) -> tuple[int, ...]:
    """What the pretrained model's own generation config stops at; nothing for a model from scratch or without one.

    Raises:
        FimError: a token that the tokenizer does not have.
    """
    if model.name_or_path is None:
        return ()
    require_generation_config(Path(model.name_or_path))
    try:
        ends = GenerationConfig.from_pretrained(model.name_or_path).eos_token_id
    except OSError:
        logger.info("%s has no generation config.", model.name_or_path)
        return ()
    ids = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
    outside = [token for token in ids if tokenizer.convert_ids_to_tokens(token) is None]
    if outside:
        raise FimError(
            f"The generation config of {model.name_or_path} stops at token {outside[0]}, which its tokenizer does not "
            "have. Check that model.tokenizer belongs to the model, or set model.end_token."
        )
    return ids
