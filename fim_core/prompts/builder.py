"""Building the prompt of a completion: the same tokens in training and in serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.errors import FimError
from fim_core.prompt_format.families import SUFFIX_FIRST
from fim_core.prompt_format.recipe import Recipe
from fim_core.prompt_format.template import FIELDS, SECTIONS, parse_template, read_template
from fim_core.prompt_format.tokens import control_tokens, is_spelled_out, resolve_fim_tokens, tokenizer_digest
from fim_core.prompts.chat_template import ChatMarkup, turn_end
from fim_core.prompts.guard import ControlTokenGuard
from fim_core.prompts.secrets import mask_secrets
from fim_core.records.schema import CONTEXT_FIELDS, Completion, Reason, Rejection
from fim_core.tokenization.encoder import TextEncoder

_EXAMPLE_STATE = Completion("SELECT ", " FROM t")

_TEXTS = tuple(field.name for field in fields(Completion) if field.name.upper() in FIELDS)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: what the model reads, control tokens written out.
        control_spans: positions of control tokens in it, `[start, end, …]` in characters, if user text contains names of
            control tokens; None: every name of a control token is one.
        prefix, suffix: text around the cursor, with secrets masked if `mask_secrets` is set.
        masked: number of masked secrets.
    """

    text: str
    control_spans: list[int] | None
    prefix: str
    suffix: str
    masked: int = 0


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A rendered row of the prompts table.

    Attributes:
        prompt, response: what the model reads, and what it learns to write.
        prefix, suffix: around the cursor; empty in conversations, None in finished prompts without known FIM tokens.
        control_spans: see `Prompt`.
        trained_spans: parts of the prompt that are trained on as well (earlier assistant turns), `[start, end, …]` in
            characters, or None.
        statement: rows with the same statement are in the same split: the whole SQL, or else the prompt or question.
        repaired: the INPUT was damaged JSON and was repaired.
        is_completion: `prefix` and `suffix` are the text around a cursor.
        is_finished: the prompt was used as it is, and may contain control tokens anywhere.
        masked: number of masked secrets.
    """

    prompt: str
    response: str
    prefix: str | None
    suffix: str | None
    control_spans: list[int] | None
    trained_spans: list[int] | None
    statement: str
    is_completion: bool
    is_finished: bool = False
    repaired: bool = False
    masked: int = 0


class PromptBuilder:
    """Builds prompts for one tokenizer, one template and one set of options.

    FIM tokens that `tokenizer` lacks are added to it.

    Args:
        recipe: of existing prompts, or of a checkpoint's training data. It decides tokens, order, template and markup;
            `tokenizer` gets its chat template.
        chat_rows: other rows have chat markup, whatever the template; completions then end with the end-of-turn token.

    Attributes:
        tokens: the control tokens in use.
        notice: names the markup, in one sentence.

    Raises:
        FimError: the template is invalid or names control tokens, or the options contradict the tokenizer or the
            recipe.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        model: ModelConfig,
        data: DataConfig,
        recipe: Recipe | None = None,
        *,
        chat_rows: bool = False,
    ) -> None:
        self._given = recipe
        named = model.end_token
        if recipe is not None:
            model, data = recipe.applied(model, data)
            _require_prompt_tokens(recipe, tokenizer)
            tokenizer.chat_template = recipe.chat_template or tokenizer.chat_template
        self.template_name = template_in_use(data, tokenizer) if recipe is None else recipe.template
        self.template_text = read_template(str(self.template_name)) if recipe is None else recipe.template_text
        self.template = parse_template(self.template_text, name=f"the template {self.template_name or '(unknown)'}")
        has_markup = bool(tokenizer.chat_template) if recipe is None else recipe.chat_template is not None
        is_chat = has_markup and (self.template.is_chat or chat_rows)
        self.tokens = resolve_fim_tokens(tokenizer, model, turn_end=turn_end(tokenizer) if is_chat else None)
        if self.tokens.family in SUFFIX_FIRST and data.fim_order == "psm":
            raise FimError(
                f"Models of the {self.tokens.family} family read the suffix first. Set data.fim_order: spm, or convert "
                "with --fim-order spm."
            )
        self.data = data
        self.tokenizer = tokenizer
        controls = control_tokens(tokenizer, self.tokens)
        self.guard = ControlTokenGuard(controls)
        self.template.refuse_control_tokens(controls)
        self._markup = (
            ChatMarkup(tokenizer, self.guard, system="system" in self.template.sections)
            if self.template.is_chat and has_markup
            else None
        )
        if recipe is not None:
            self._opening = recipe.opening
        else:
            self._opening = "" if self._markup is not None else self.sequence_start
        self._opening_spans = self.guard.spans(self._opening)
        self.notice = self._describe(has_markup)
        if recipe is not None and named not in (None, recipe.fim_tokens.end):
            self.notice += (
                f" Completions end in {named}, as the experiment says; the data set says {recipe.fim_tokens.end}."
            )
        self._fields = {section: self.template.fields_of(section) for section in SECTIONS}
        # Constant sections stay cached; consecutive rows are of one worksheet and share the others.
        self._section = lru_cache(maxsize=16)(self._render_section)
        self._example, own = self._render(_EXAMPLE_STATE)
        if own != self.guard.spans(self._example):
            raise FimError(
                f"The template {self.template_name or '(unknown)'} contains a control token around an empty field. "
                "Reword it."
            )
        if recipe is not None and recipe.example not in ("", self._example):
            raise FimError(
                "This tokenizer's chat markup differs from that of the sources' finished prompts. Train with the tokenizer that "
                "they were converted with."
            )

    @cached_property
    def encoder(self) -> TextEncoder:
        """Encodes prompts and decodes completions; created on first use."""
        return TextEncoder(self.tokenizer, self.tokens)

    @cached_property
    def recipe(self) -> Recipe:
        """How these prompts are built, for training and serving."""
        template = self.template_name and Path(self.template_name).name
        return Recipe(
            fim_tokens=self.tokens,
            fim_order=self.data.fim_order,
            template=template,
            template_text=self.template_text,
            chat_template=str(self.tokenizer.chat_template) if self._markup is not None else None,
            opening=self._opening,
            example=self._example,
            prompt_tokens=tuple(dict.fromkeys(match[0] for match in self.guard.pattern.finditer(self._example))),
            tokenizer=tokenizer_digest(self.tokenizer),
            control_tokens=self.data.control_tokens,
            mask_secrets=self.data.mask_secrets,
            ignore_empty_think=self.data.ignore_empty_think,
            granularity=self._given.granularity if self._given else None,
        )

    @cached_property
    def context_fields(self) -> tuple[str, ...]:
        """The CONTEXT_FIELDS that the template uses."""
        used = {field for fields in self._fields.values() for field in fields}
        return tuple(name for name in CONTEXT_FIELDS if name.upper() in used)

    @cached_property
    def sequence_start(self) -> str:
        """The token that the tokenizer puts before every text, or an empty text."""
        bos = self.tokenizer.bos_token
        return bos if bos and self.tokenizer("x")["input_ids"][0] == self.tokenizer.bos_token_id else ""

    def build(self, completion: Completion) -> Prompt | Rejection:
        """The prompt of a completion, or a rejection if user text becomes a control token and is not neutralised."""
        return self._build(completion, neutralise=self.data.control_tokens == "neutralise")

    def encode(self, completion: Completion) -> list[int]:
        """Token ids of a completion's prompt, for serving: the same as in training.

        User text that names a control token is encoded as text: a user is waiting for the answer, so it is not rejected.

        Raises:
            FimError: user text becomes a control token nevertheless.
        """
        prompt = self._build(completion, neutralise=True)
        if isinstance(prompt, Rejection):
            raise FimError(f"This text cannot be completed: {prompt.detail}.")
        pieces = self.encoder.pieces(prompt.text, prompt.control_spans)
        ids = self.encoder.join(pieces)
        if self.encoder.is_control[ids].sum() != sum(isinstance(piece, int) for piece in pieces):
            raise FimError("This text cannot be completed: the tokenizer makes a control token of it.")
        return ids

    def reads_control(self, *texts: str, neutralise: bool) -> bool:
        """Whether one of these user texts becomes a control token.

        Args:
            neutralise: names of control tokens are encoded as text; False: as the tokenizer encodes them by default.
        """
        if not neutralise and self.guard.found_in(*texts):
            return True
        return not self._is_literal and any(self._reads(text, neutralise) for text in texts)

    def masked(self, *texts: str) -> tuple[list[str], int]:
        """Texts with secrets masked if `mask_secrets` is set, and the number of secrets."""
        if not self.data.mask_secrets:
            return list(texts), 0
        results = [mask_secrets(text) for text in texts]
        return [text for text, _ in results], sum(found for _, found in results)

    def _build(self, completion: Completion, *, neutralise: bool) -> Prompt | Rejection:
        masked = 0
        if self.data.mask_secrets:
            texts, masked = self.masked(*(getattr(completion, name) for name in _TEXTS))
            completion = _with_texts(completion, texts)
        text, own = self._render(completion)
        spans = None if own is None else self.decide(text, own, neutralise=neutralise)
        if spans is None:
            return Rejection(Reason.CONTROL_TOKEN, self._where(completion))
        return Prompt(text, spans or None, completion.prefix, completion.suffix, masked)

    def decide(self, text: str, own: list[int], *, neutralise: bool) -> list[int] | None:
        """Check that a prompt contains no control tokens but its own.

        Args:
            text: the prompt.
            own: positions of its own control tokens, `[start, end, …]` in characters.
            neutralise: names of control tokens elsewhere are encoded as text.

        Returns:
            None if user text becomes a control token. An empty list if every name of a control token is one. Otherwise
            `own`, which is needed to encode the prompt.
        """
        names_own = self.guard.spans(text) == own
        if not names_own and not neutralise:
            return None
        if not self._is_literal:
            between = [0, *own, len(text)]
            user = [text[start:end] for start, end in zip(between[::2], between[1::2], strict=True) if start < end]
            if any(self._reads(part, neutralise) for part in user):
                return None
        return [] if names_own else own

    @cached_property
    def _is_literal(self) -> bool:
        return is_spelled_out(self.tokenizer, self.tokens)

    @cached_property
    def _reads(self) -> Callable[[str, bool], bool]:
        return lru_cache(maxsize=1024)(lambda text, blind: self.encoder.reads_control(text, blind=blind))

    def _where(self, completion: Completion) -> str:
        named = [name for name in _TEXTS if self.reads_control(getattr(completion, name), neutralise=False)]
        if not named:
            return "template and user text together form a control token"
        return f"{', '.join(named)} contains a control token"

    def _render(self, completion: Completion) -> tuple[str, list[int] | None]:
        """The prompt, and the positions of its own control tokens; None if they cannot be determined."""
        system, user, lead = [
            self._section(section, *[getattr(completion, field.lower()) for field in fields])
            for section, fields in self._fields.items()
        ]
        if self._markup is not None:
            opening, own = self._markup.render(system, user)
        else:
            opening = self._opening + "".join(f"{text}\n\n" for text in (system, user) if text)
            own = self._opening_spans
        tokens = self.tokens
        prefix, suffix = (tokens.prefix, completion.prefix), (tokens.suffix, completion.suffix)
        (mark, side), (other_mark, other_side) = (prefix, suffix) if self.data.fim_order == "psm" else (suffix, prefix)
        text = f"{opening}{lead}{mark}{side}{other_mark}{other_side}{tokens.middle}"
        if own is None:
            return text, None
        first = len(opening) + len(lead)
        second = first + len(mark) + len(side)
        middle = len(text) - len(tokens.middle)
        return text, [*own, first, first + len(mark), second, second + len(other_mark), middle, len(text)]

    def _render_section(self, section: str, *values: str) -> str:
        pieces = self.template.render(section, dict(zip(self._fields[section], values, strict=True)))
        return "".join([piece.text for piece in pieces])

    def _describe(self, has_markup: bool) -> str:
        if self._given is not None and not self._given.has_template:
            return "Prompts of an unknown template: the text around the cursor alone, without context."
        if self._markup is not None and self._markup.folds_system:
            return "Chat markup of the tokenizer, which has no system role: the system text opens the first user turn."
        if self._markup is not None:
            return "Chat markup of the tokenizer."
        if not has_markup and self.data.template == "chat":
            return "The tokenizer has no chat template: the plain template is used, without chat markup."
        if self.template.is_chat:
            return (
                "The tokenizer has no chat template: the template's sections stand one after the other, without markup."
            )
        return "Plain template, without chat markup."


def template_in_use(data: DataConfig, tokenizer: PreTrainedTokenizerFast) -> str:
    """Name or path of the template that prompts are built with: `chat` needs a tokenizer that has chat markup."""
    return "plain" if data.template == "chat" and not tokenizer.chat_template else data.template


def _require_prompt_tokens(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
    known = {*control_tokens(tokenizer, recipe.fim_tokens), *recipe.fim_tokens.added}
    has_end = tokenizer.backend_tokenizer.token_to_id(recipe.fim_tokens.end) is not None
    missing = [token for token in recipe.prompt_tokens if token not in known]
    if missing or not has_end:
        raise FimError(
            "The tokenizer lacks control tokens of the finished prompts of the sources: "
            f"{', '.join(missing or [recipe.fim_tokens.end])}. Train with the tokenizer that they were converted with, or "
            "convert the export again with this one."
        )


def _with_texts(completion: Completion, texts: list[str]) -> Completion:
    changed: dict[str, Any] = dict(zip(_TEXTS, texts, strict=True))
    return replace(completion, **changed)
