"""Control tokens of a tokenizer: FIM markers, and the tokens that end a completion."""

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
        end: the last token of a completion in training.
        end_ids: all ids that end a completion in serving, `end_id` first; they become
            `eos_token_id` of the checkpoint's generation config.
        family: a key of FAMILIES; `configured`; or `added`.
        added: tokens that were added to the tokenizer, so that the embeddings have to be resized.
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
    """Load a tokenizer from a folder or by hub id. Its own code is never run.

    Raises:
        FimError: it does not exist, needs its own code, or has no fast (`tokenizers`) version.
    """
    place = str(path_or_id)
    require_place(place, "tokenizer")
    try:
        folder = Path(place).expanduser()
        # By default, transformers asks on a terminal whether to run the code.
        tokenizer = AutoTokenizer.from_pretrained(folder if folder.is_dir() else place, trust_remote_code=False)
    except Exception as error:  # the Rust library raises Exception itself
        raise FimError(
            f"The tokenizer {place} cannot be loaded: {first_line(error)} Give a folder that holds tokenizer.json and "
            "tokenizer_config.json, or a hub id that this machine can reach (HF_HUB_OFFLINE unset)."
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise FimError(
            f"The tokenizer {place} has no tokenizer.json, which is required. Convert it with transformers first."
        )
    return tokenizer


def control_tokens(tokenizer: PreTrainedTokenizerFast, fim: FimTokens | None = None) -> frozenset[str]:
    """The control tokens of a tokenizer, as text: user text must never be encoded as one.

    These are all special tokens; added tokens without the special flag that look like markup and that a family or the chat
    template names (Qwen's FIM and tool tokens); and the tokens of `fim`. Other added tokens are ordinary text: runs of
    spaces, line ends, Gemma's `<h1>` and `<table>`.

    Args:
        fim: the control tokens in use, if known. Its end token is included if it is an added token.
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
    """Whether text is encoded as a control token only where it contains its name, so that `control_pattern` finds all.

    Requires that added tokens are matched in the raw text, not after normalisation, and that the model below them cannot
    produce a control token: BPE merges never cross token boundaries, so BPE produces one in some text only if it does for
    the token's own name. The unknown token must not be a control token either.
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
    """Hash of everything that decides how a tokenizer encodes, 16 hex digits."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the tokenizer has."""
    found = tokenizer.token_to_id(token)
    assert found is not None, f"{token} is a token of this tokenizer"
    return found


def control_pattern(tokens: Collection[str]) -> re.Pattern[str]:
    """A pattern that finds control tokens as a tokenizer does: leftmost first, then longest."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")


def control_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The ids of `control_tokens`."""
    return frozenset(token_id(tokenizer.backend_tokenizer, text) for text in control_tokens(tokenizer))


def resolve_fim_tokens(
    tokenizer: PreTrainedTokenizerFast, model: ModelConfig, *, turn_end: str | None = None
) -> FimTokens:
    """Determine the control tokens of a model, and add missing ones to `tokenizer`, in place.

    FIM markers: those of the experiment, else those of the family that the tokenizer has, else Qwen's names.

    End token, used in training: that of the experiment; else, for prompts with chat markup, the token that ends a turn;
    else the family's; else, if the tokenizer has no FIM tokens, an end token of the model's generation config, preferably
    the tokenizer's end-of-sequence token, else that token.

    In serving, a middle also ends at the family's other end tokens, the FIM markers, the tokenizer's end-of-sequence token
    and the end tokens of the model's generation config.

    Args:
        turn_end: for prompts with chat markup, the control token that closes the assistant's turn; None: the prompts
            have no chat markup, or no control token closes their turns.

    Raises:
        FimError: there is no end token, or the one in the options does not exist.
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
    """Add tokens as added tokens, also those in the vocabulary: only added tokens are matched as a whole."""
    known = {token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in texts if text not in known])


def _is_ordinary_text(tokenizer: PreTrainedTokenizerFast, token: str, number: int) -> bool:
    """Whether a token is only a vocabulary entry, so that ordinary text can be encoded as it."""
    backend = tokenizer.backend_tokenizer
    return (
        number not in backend.get_added_tokens_decoder()
        and number in backend.encode(token, add_special_tokens=False).ids
    )


def _is_markup(text: str) -> bool:
    core = text.strip().lstrip("▁")
    return len(core) >= 3 and (core[0], core[-1]) in {("<", ">"), ("[", "]")}


def _end_id(tokenizer: PreTrainedTokenizerFast, model: ModelConfig, end: str | None, served: tuple[int, ...]) -> int:
    """The id of the end token in training.

    Args:
        end: the end token of the prompts' markup or of the family, if there is one.
        served: end tokens of the model's generation config.
    """
    eos = tokenizer.eos_token_id
    if model.end_token is not None:
        named = tokenizer.backend_tokenizer.token_to_id(model.end_token)
        cure = f"Name a special token, for example {end or tokenizer.eos_token}, or remove the key."
        if named is None:
            raise FimError(f"model.end_token {model.end_token} is not a token of this tokenizer. {cure}")
        if _is_ordinary_text(tokenizer, model.end_token, named):
            raise FimError(
                f"model.end_token {model.end_token} is ordinary text for this tokenizer: completions that contain it would "
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
            "Neither the model's generation config nor its tokenizer defines an end token. Set model.end_token."
        )
    return eos


def require_generation_config(folder: Path) -> None:
    """Require that generation_config.json, if there is one, can be read: transformers ignores a damaged one, and generation
    would then stop at other tokens.

    Raises:
        DamagedFile: it is damaged.
    """
    with suppress(FileNotFoundError):
        read_json_as(folder / "generation_config.json", dict[str, Any])


def _generation_end_ids(tokenizer: PreTrainedTokenizerFast, model: ModelConfig) -> tuple[int, ...]:
    """End tokens of the pretrained model's generation config; empty for a model from scratch or without one.

    Raises:
        FimError: the tokenizer lacks one of them.
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
