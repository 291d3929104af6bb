"""Some rows as the model meets them: which tokens it only reads, and which it learns to write."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

if TYPE_CHECKING:
    from fim_core.packing import Rows

_SAMPLES = 3
_SHOWN_CHARACTERS = 1600
"""Of a stretch of text; a longer one is cut in its middle."""


def samples(rows: Rows, tokenizer_file: Path) -> dg.MetadataValue:
    """Rows from the beginning, the middle and the end of a split, as Markdown.

    A row is decoded from its ids, so that one sees what is trained on, control tokens included, rather than what was
    meant.

    Args:
        rows: at least one.
        tokenizer_file: `tokenizer.json` of the prompts.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    chosen = sorted({round(place) for place in np.linspace(0, len(rows) - 1, _SAMPLES)})
    return dg.MetadataValue.md("\n\n---\n\n".join(_sample(rows, row, tokenizer) for row in chosen))


def _sample(rows: Rows, row: int, tokenizer) -> str:  # type: ignore[no-untyped-def]
    from fim_core.packing.rows import IGNORE_INDEX

    ids, trained = rows.tokens_of(row), rows.labels_of(row) != IGNORE_INDEX
    parts = [f"### Row {rows.row_ids[row]}: {len(ids):,} tokens, {int(trained.sum()):,} trained on"]
    for is_trained, stretch in groupby(range(len(ids)), key=trained.__getitem__):
        places = list(stretch)
        text = tokenizer.decode(ids[places].tolist(), skip_special_tokens=False)
        title = f"{'🟩 **trained on**' if is_trained else '⬜ **masked**'} ({len(places):,} tokens)"
        parts.append(f"{title}\n\n{_fenced(_cut(text))}")
    return "\n\n".join(parts)


def _cut(text: str) -> str:
    left_out = len(text) - _SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]}\n⋯ {left_out:,} characters are not shown ⋯\n{text[-half:]}"


def _fenced(text: str) -> str:
    """Text as a code block that it cannot end: the fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
