"""Finished prompts: the text around their cursor, and detection of their form where no recipe describes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.config.model import FimTokenNames
from fim_core.errors import FimError
from fim_core.prompt_format.families import FAMILIES
from fim_core.prompt_format.recipe import Recipe
from fim_core.prompt_format.template import BARE
from fim_core.prompt_format.tokens import FimTokens, control_pattern, control_tokens, resolve_fim_tokens
from fim_core.prompts.chat_template import render_chat, turn_end

FIM_TOKENS = tuple(
    FimTokenNames(prefix=prefix, suffix=suffix, middle=middle)
    for prefix, suffix, middle in dict.fromkeys(family.markers for family in FAMILIES.values())
)
"""The markers of all families; several families have the same."""

Order = Literal["psm", "spm"]
ORDERS: tuple[Order, ...] = ("psm", "spm")
_ORDER_WORDS = {"psm": "prefix first", "spm": "suffix first"}


def around_cursor(prompt: str, tokens: FimTokens | FimTokenNames, order: Order) -> tuple[str, str] | None:
    """Text before and after the cursor of a finished FIM prompt.

    None unless it contains each of the three tokens once, in this order, and ends with the middle token.
    """
    names = (tokens.prefix, tokens.suffix, tokens.middle)
    if not prompt.endswith(tokens.middle) or any(prompt.count(name) != 1 for name in names):
        return None
    first, second = names[:2] if order == "psm" else (names[1], names[0])
    _, _, rest = prompt.removesuffix(tokens.middle).partition(first)
    left, found, right = rest.partition(second)
    if not found:
        return None
    return (left, right) if order == "psm" else (right, left)


def context_of(prompt: str, recipe: Recipe) -> str:
    """The text before the FIM block of a finished prompt; the whole prompt if it has none."""
    first = recipe.fim_tokens.prefix if recipe.fim_order == "psm" else recipe.fim_tokens.suffix
    return prompt.partition(first)[0]


def is_fim_prompt(prompt: str) -> bool:
    """Whether a finished prompt ends in the FIM block of any family, in any order."""
    return any(around_cursor(prompt, names, order) for names in FIM_TOKENS for order in ORDERS)


@dataclass(frozen=True)
class DetectedForm:
    """The form of finished prompts without a recipe.

    Attributes:
        model, data: the experiment's sections, with the detected tokens and order.
        recipe: for serving; None if the experiment's template applies, or nothing was detected.
        notice: what was detected, for users.
        is_chat: they have chat markup, so completions end with the end-of-turn token.
    """

    model: ModelConfig
    data: DataConfig
    recipe: Recipe | None
    notice: str
    is_chat: bool


def detect_form(
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    model: ModelConfig,
    data: DataConfig,
    *,
    has_template: bool,
) -> DetectedForm:
    """Detect FIM tokens and their order in finished prompts.

    Args:
        prompts: a sample; not empty.
        has_template: the experiment's template is that of these prompts, or of other rows of the sources.

    Raises:
        FimError: the tokenizer has other FIM tokens, or the experiment sets another order.
    """
    is_chat = holds_chat_markup(prompts, tokenizer)
    candidates = {model.fim_tokens} if model.fim_tokens else FIM_TOKENS
    found = Counter(
        (names, order)
        for prompt in prompts
        for names in candidates
        for order in ORDERS
        if around_cursor(prompt, names, order) is not None
    )
    if not found:
        notice = (
            "Finished prompts without known FIM tokens: they are trained on as they are. If they are questions without "
            "markup, set `render: chat` for their source."
        )
        return DetectedForm(model, data, None, notice, is_chat)
    ((names, order), rows) = found.most_common(1)[0]
    _require_order(data, order)
    _require_tokens(tokenizer, names)
    model = model.model_copy(update={"fim_tokens": names})
    data = data.model_copy(update={"fim_order": order})
    notice = (
        f"Finished prompts without a recipe: FIM tokens {_listed(names)}, {_ORDER_WORDS[order]}, "
        f"in {rows:,} of {len(prompts):,} prompts looked at{', with chat markup' if is_chat else ''}."
    )
    if has_template:
        return DetectedForm(model, data, None, f"{notice} Serving uses the template {data.template}.", is_chat)
    recipe = Recipe(
        fim_tokens=resolve_fim_tokens(tokenizer, model, turn_end=turn_end(tokenizer) if is_chat else None),
        fim_order=order,
        template=None,
        template_text=BARE,
        chat_template=None,
        opening=_opening(prompts, tokenizer),
        example="",
        prompt_tokens=(),
        tokenizer="",
    )
    notice += (
        " Their template is unknown: serving sends the text around the cursor alone, in this order, without context. "
        "If they were made with a template, set data.template to it."
    )
    return DetectedForm(model, data, recipe, notice, is_chat)


def holds_chat_markup(prompts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether most prompts contain a control token that the tokenizer's chat template puts around a turn."""
    if not tokenizer.chat_template:
        return False
    try:
        markup = render_chat(tokenizer, [{"role": "user", "content": "x"}])
    except TemplateError:
        return False
    turn = set(control_pattern(control_tokens(tokenizer)).findall(markup)) - {tokenizer.bos_token}
    return 2 * sum(any(token in prompt for token in turn) for prompt in prompts) > len(prompts)


def _require_order(data: DataConfig, order: Order) -> None:
    if "fim_order" in data.model_fields_set and data.fim_order != order:
        raise FimError(
            f"data.fim_order is {data.fim_order}, but the finished prompts of the sources are in the order {order}. "
            "Remove the option."
        )


def _require_tokens(tokenizer: PreTrainedTokenizerFast, names: FimTokenNames) -> None:
    """Refuse a tokenizer that has other FIM tokens than these; one without any gets these."""
    known = control_tokens(tokenizer)
    own = [its for its in FIM_TOKENS if its != names and {its.prefix, its.suffix, its.middle} <= known]
    if own and not {names.prefix, names.suffix, names.middle} <= known:
        raise FimError(
            f"The finished prompts of the sources contain the FIM tokens {_listed(names)}, which are ordinary text for this "
            f"tokenizer: its own are {_listed(own[0])}. Choose a model with the tokens of the prompts, or convert the "
            "export with this tokenizer."
        )


def _listed(names: FimTokenNames) -> str:
    return f"{names.prefix}, {names.suffix}, {names.middle}"


def _opening(prompts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> str:
    bos = tokenizer.bos_token
    return bos if bos and 2 * sum(prompt.startswith(bos) for prompt in prompts) > len(prompts) else ""
