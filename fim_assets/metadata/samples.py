"""Sample rows, decoded from their token ids, with the spans that are trained on."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np

from fim_core.folders.tokenized import IGNORE_INDEX
from fim_core.markdown import fenced

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

_SAMPLES = 3
_SHOWN_CHARACTERS = 1600
"""Maximum length of a shown span; longer ones are cut in the middle."""


def samples(rows: pa.Table, tokenizer_file: Path) -> dg.MetadataValue:
    """Show rows from the beginning, the middle and the end of a split, as Markdown.

    Rows are decoded from their ids, so they show exactly what is trained on, control tokens included.

    Args:
        rows: at least one; columns row_id, input_ids and labels.
        tokenizer_file: `tokenizer.json` of the prompts.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    chosen = sorted({round(place) for place in np.linspace(0, rows.num_rows - 1, _SAMPLES)})
    # Slices, because `take` would concatenate the chunks of the whole table first.
    rows = rows.select(["row_id", "input_ids", "labels"])
    shown = [row for place in chosen for row in rows.slice(place, 1).to_pylist()]
    return dg.MetadataValue.md("\n\n---\n\n".join(_sample(tokenizer=tokenizer, **row) for row in shown))


def _sample(row_id: str, input_ids: list[int], labels: list[int], tokenizer: Tokenizer) -> str:
    trained = [label != IGNORE_INDEX for label in labels]
    parts = [f"### Row {row_id}: {len(labels):,} tokens, {sum(trained):,} trained on"]
    first = 0
    for is_trained, stretch in groupby(trained):
        length = len(list(stretch))
        text = tokenizer.decode(input_ids[first : first + length], skip_special_tokens=False)
        parts.append(f"**{'Trained on' if is_trained else 'Masked'}** ({length:,} tokens)\n\n{fenced(_cut(text))}")
        first += length
    return "\n\n".join(parts)


def _cut(text: str) -> str:
    left_out = len(text) - _SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]}\n⋯ {left_out:,} characters are not shown ⋯\n{text[-half:]}"
