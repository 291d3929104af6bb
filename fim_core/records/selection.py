"""Selection of a source's rows: a slice of its split, then a random sample."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from fim_core.config.data import Source
from fim_core.config.split_expression import parse_split
from fim_core.errors import FimError
from fim_core.records.readers import Export


def selects(source: Source) -> bool:
    """Whether a source selects only some of its rows."""
    return (
        source.sample_ratio is not None or source.sample_count is not None or parse_split(source.split)[1] is not None
    )


def selected_rows(source: Source, exports: Sequence[Export], warn: Callable[[str], None]) -> list[np.ndarray]:
    """Masks over the rows of each export of a source: whether a row is read. bool [rows].

    The rows of a source are those of its exports, one after the other. They are counted first, by reading them once. The
    sample is drawn with Python's generator as in ArcticTraining: the same seed selects the same rows.

    Raises:
        FimError: no row is selected.
    """
    counts = [sum(batch.num_rows for batch in export.batches(_ignore_warning)) for export in exports]
    total = sum(counts)
    name = source.name_or_path or source.table_name or source.type
    within = parse_split(source.split)[1]
    rows = range(total) if within is None else within.rows(total)
    if (wanted := _sample_size(source, len(rows))) is not None:
        if wanted > len(rows):
            warn(f"{name}: sample_count is {wanted:,}, but there are {len(rows):,} rows: all of them are read.")
        drawn = random.Random(source.sample_seed).sample(rows, min(wanted, len(rows)))
    else:
        drawn = list(rows)
    if not drawn:
        raise FimError(
            f"{name}: split {source.split} and sampling leave none of {total:,} rows. Change `split`, `sample_ratio` or "
            "`sample_count`."
        )
    mask = np.zeros(total, bool)
    mask[drawn] = True
    return np.split(mask, np.cumsum(counts)[:-1])


def _sample_size(source: Source, rows: int) -> int | None:
    return int(rows * source.sample_ratio) if source.sample_ratio is not None else source.sample_count


def _ignore_warning(_: str) -> None:
    """Drop a warning: it is repeated when the rows are read into the table."""
