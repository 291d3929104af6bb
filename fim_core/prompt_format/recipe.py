"""The recipe of prompts: everything that decides how an editor's state becomes a model's input tokens.

It is stored with prompts everywhere: in the file `fim.json` of a folder (a converted data set, the prompts of an
experiment, a checkpoint), and under the key `fim_recipe` in the schema metadata of a Parquet file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fim_core.atomic import write_json
from fim_core.config.data import DataConfig
from fim_core.config.model import FimTokenNames, ModelConfig
from fim_core.errors import FimError

if TYPE_CHECKING:
    from fim_core.prompt_format.tokens import FimTokens

RECIPE = "fim.json"

_SCHEMA_KEY = b"fim_recipe"


@dataclass(frozen=True)
class Recipe:
    """How prompts are built. It contains texts, not paths, so that it is valid on every machine.

    Attributes:
        fim_tokens: the markers, and the end token of completions; ids are of the tokenizer that it was written with.
        fim_order: which side of the cursor comes first.
        template: name of the template: `chat`, `plain`, or a file's name; None if prompts came without a recipe.
        template_text: its text; without a known template, one without context.
        chat_template: the tokenizer's chat template, if its markup surrounds the prompt; None: no markup.
        opening: start of a prompt without markup: the tokenizer's token for the start of a text, or empty.
        example: the prompt of a state without context, control tokens written out; empty if unknown.
        prompt_tokens: the control tokens in every prompt.
        tokenizer: digest of the tokenizer (see `tokenizer_digest`).
        control_tokens, mask_secrets, ignore_empty_think: as in the section `data` of an experiment.
        granularity: the units that were encoded independently in training; None before tokenization.
    """

    fim_tokens: FimTokens
    fim_order: Literal["psm", "spm"]
    template: str | None
    template_text: str
    chat_template: str | None
    opening: str
    example: str
    prompt_tokens: tuple[str, ...]
    tokenizer: str
    control_tokens: Literal["reject", "neutralise"] = "reject"
    mask_secrets: bool = False
    ignore_empty_think: bool = False
    granularity: Literal["line", "segment"] | None = None
    version: Literal[1] = 1

    __pydantic_config__: ClassVar = ConfigDict(defer_build=True, extra="forbid")

    @property
    def has_template(self) -> bool:
        """Whether the template is known. Without one, serving sends no context."""
        return self.template is not None

    def refuse_contradictions(self, data: DataConfig) -> None:
        """Check that the experiment's options for prompts match these prompts.

        Raises:
            FimError: it sets another order or another template.
        """
        if "fim_order" in data.model_fields_set and data.fim_order != self.fim_order:
            raise FimError(
                f"data.fim_order is {data.fim_order}, but the finished prompts of the sources are in the order "
                f"{self.fim_order}. Remove the option, or convert the export again."
            )
        if "template" in data.model_fields_set and self.has_template:
            from fim_core.prompt_format.template import read_template

            # Without chat markup, `chat` means `plain`.
            name = "plain" if data.template == "chat" and self.chat_template is None else data.template
            if read_template(name) != self.template_text:
                raise FimError(
                    f"data.template is {data.template}, but the finished prompts of the sources were made with another "
                    f"text (template {self.template}). Remove the option, or convert the export again."
                )

    def applied(self, model: ModelConfig, data: DataConfig) -> tuple[ModelConfig, DataConfig]:
        """The sections of an experiment with the tokens and the order of these prompts.

        The experiment's end token takes precedence: it is not part of a finished prompt.

        Raises:
            FimError: the experiment contradicts the recipe.
        """
        self.refuse_contradictions(data)
        tokens = self.fim_tokens
        names = FimTokenNames(prefix=tokens.prefix, suffix=tokens.suffix, middle=tokens.middle)
        if model.fim_tokens not in (None, names):
            raise FimError(
                "model.fim_tokens differs from the tokens in the finished prompts of the sources: "
                f"{tokens.prefix}, {tokens.suffix}, {tokens.middle}. Remove the option."
            )
        return (
            model.model_copy(update={"fim_tokens": names, "end_token": model.end_token or tokens.end}),
            data.model_copy(
                update={"fim_order": self.fim_order, "mask_secrets": data.mask_secrets or self.mask_secrets}
            ),
        )

    def same_prompts_as(self, other: Recipe) -> bool:
        """Whether both build the same text from the same state; names and origins may differ."""
        return _essence(self) == _essence(other)


def _essence(recipe: Recipe) -> Recipe:
    # A family is only a name for tokens, and which of them were added does not matter.
    tokens = replace(recipe.fim_tokens, family="", added=())
    return replace(recipe, fim_tokens=tokens, template=None, tokenizer="", example="")


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Write `fim.json` into a folder."""
    write_json(folder / RECIPE, asdict(recipe))


def read_recipe(folder: Path) -> Recipe:
    """Read the `fim.json` of a folder.

    Raises:
        FimError: it is missing, or does not fit this version of the package.
    """
    found = find_recipe(folder)
    if found is None:
        raise FimError(
            f"{folder} has no {RECIPE}, which describes how prompts are built. Use a complete folder that this package wrote, such as a "
            "trained_checkpoint."
        )
    return found


def find_recipe(folder: Path) -> Recipe | None:
    """The recipe in a folder, or None where there is no `fim.json`.

    Raises:
        FimError: it does not fit this version of the package.
    """
    path = folder / RECIPE
    return _parse(path.read_bytes(), str(path)) if path.is_file() else None


def schema_with(schema: pa.Schema, recipe: Recipe) -> pa.Schema:
    """An Arrow schema with a recipe in its metadata, for writing Parquet."""
    text = json.dumps(asdict(recipe), ensure_ascii=False).encode()
    return schema.with_metadata({**(schema.metadata or {}), _SCHEMA_KEY: text})


def recipe_of(schema: pa.Schema, name: str) -> Recipe | None:
    """The recipe in the metadata of an Arrow schema, or None. `name` is for messages.

    Raises:
        FimError: it does not fit this version of the package.
    """
    text = (schema.metadata or {}).get(_SCHEMA_KEY)
    return None if text is None else _parse(text, f"The recipe in {name}")


def _parse(text: bytes, place: str) -> Recipe:
    try:
        return _adapter().validate_json(text)
    except ValidationError as error:
        keys = sorted({str(problem["loc"][0]) for problem in error.errors(include_url=False) if problem["loc"]})
        raise FimError(
            f"{place} does not fit this version of the package ({', '.join(keys) or 'not an object'}): use the version "
            "that wrote it, or convert or train again."
        ) from error


@cache
def _adapter() -> TypeAdapter[Any]:
    # Imported late: it imports transformers, which reading most files does not need.
    from fim_core.prompt_format.tokens import FimTokens

    adapter = TypeAdapter(Recipe)
    adapter.rebuild(_types_namespace={"FimTokens": FimTokens})
    return adapter
