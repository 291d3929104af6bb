"""What every section of an experiment file has in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of an experiment file: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=())


Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path, or the id of something on a hub; `~` stands for the home folder."""


FolderName = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$", max_length=100)]
"""A name that a folder gets as well, so it may lead nowhere else."""


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
