"""What every section of an experiment file has in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of an experiment file: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )


Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, or the id of something on a hub; `~` stands for the home folder."""


NAME_LENGTH = 100
"""Characters of a name that folders get; with a version and a suffix it has to stay below the 255 of a file system."""

FolderName = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$", max_length=NAME_LENGTH)]
"""A name that a folder gets as well, so it may lead nowhere else."""


_PLACES = {"name_or_path", "tokenizer", "template", "cache_dir"}


def portable(options: Any) -> Any:
    """Options as they are shared with others: of a path of this machine only its last part is left.

    Args:
        options: a section as plain values, lists and mappings.
    """
    if isinstance(options, Mapping):
        return {
            key: os.path.basename(value.rstrip("/"))
            if key in _PLACES and isinstance(value, str) and os.path.isabs(value)
            else portable(value)
            for key, value in options.items()
        }
    return [portable(value) for value in options] if isinstance(options, (list, tuple)) else options


def closest(name: str, known: Sequence[str]) -> str:
    """A hint at the name that was probably meant: `; did you mean …?`, or nothing."""
    from difflib import get_close_matches

    names = get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {names[0]}?" if names else ""


def _known_dialect(name: str) -> str:
    from sqlglot.dialects.dialect import Dialect

    Dialect.get_or_raise(name)
    return name


DialectName = Annotated[str, AfterValidator(_known_dialect)]
"""A dialect that sqlglot knows."""
