"""Base class and shared types of the sections of an experiment file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from fim_core.config.numbers import parse_number, parse_numbers_in, takes_numbers
from fim_core.object_storage.urls import checked_place


class Section(BaseModel):
    """One section of an experiment file. Immutable; unknown keys are refused.

    Numeric options also accept text that spells a number (see `numbers.py`).
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _parse_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation: Any = cls.model_fields[str(info.field_name)].annotation
        if not isinstance(value, str | list) or not takes_numbers(annotation):
            return value
        return parse_number(value) if isinstance(value, str) else parse_numbers_in(value)


PathOrId = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path or a hub id; `~` is expanded to the home folder."""

PlaceOrId = Annotated[PathOrId, AfterValidator(checked_place)]
"""A path, a hub id, or a URL of object storage."""


NAME_LENGTH = 100
"""Maximum length of a name that is used for folders. With version and suffix it stays below a file system's 255."""

FolderName = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$", max_length=NAME_LENGTH)]
"""A name that is also used as a folder name, so it may not contain path separators or begin with a dot."""


_PATH_OPTIONS = {"name_or_path", "tokenizer", "template", "cache_dir"}


def portable(options: Any) -> Any:
    """Replace absolute paths by their last part, so that options can be shared with other machines.

    Args:
        options: a section as plain values, lists and mappings.
    """
    if isinstance(options, Mapping):
        return {
            key: os.path.basename(value.rstrip("/"))
            if key in _PATH_OPTIONS and isinstance(value, str) and os.path.isabs(value)
            else portable(value)
            for key, value in options.items()
        }
    return [portable(value) for value in options] if isinstance(options, (list, tuple)) else options


def closest(name: str, known: Sequence[str]) -> str:
    """Suggest a similar known name: `; did you mean …?`, or an empty string."""
    from difflib import get_close_matches

    names = get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {names[0]}?" if names else ""


def _known_dialect(name: str) -> str:
    from sqlglot.dialects.dialect import Dialect

    Dialect.get_or_raise(name)
    return name


DialectName = Annotated[str, AfterValidator(_known_dialect)]
"""A dialect that sqlglot knows."""
