"""Rows are views of the Arrow file, over any number of record batches."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_helpers import row, to_rows

from fim_core.errors import FimError
from fim_core.packing import IGNORE_INDEX, Rows

FEATURES = datasets.Features(
    {
        "row_id": datasets.Value("string"),
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
    }
)


def saved(folder: Path, lists: list[list[int]]) -> datasets.Dataset:
    """A data set of several record batches, written and mapped into memory again."""
    columns = {
        "row_id": [f"row-{i}" for i in range(len(lists))],
        "input_ids": lists,
        "labels": [[IGNORE_INDEX, *tokens[1:]] for tokens in lists],
    }
    datasets.Dataset.from_dict(columns, features=FEATURES).save_to_disk(folder, num_shards=min(3, len(lists)))
    return datasets.load_from_disk(folder)


def test_rows_are_views_over_all_record_batches(tmp_path):
    lists = [[row, *range(row)] for row in range(1, 9)]
    rows = Rows.from_dataset(saved(tmp_path, lists))
    assert len(rows.tokens.parts) > 1
    assert [rows.tokens_of(i).tolist() for i in range(len(rows))] == lists
    assert rows.labels_of(3).tolist() == [IGNORE_INDEX, *lists[3][1:]]
    assert list(rows.row_ids) == [f"row-{i}" for i in range(8)]
    assert not rows.tokens_of(3).flags.owndata
    assert not rows.tokens_of(3).flags.writeable
    assert rows.targets_per_row.tolist() == [len(tokens) - 1 for tokens in lists]
    assert rows.first_targets.tolist() == [1] * 8


def test_a_selection_of_rows_is_honoured(tmp_path):
    rows = Rows.from_dataset(saved(tmp_path, [[i, i] for i in range(8)]).select([6, 1, 4]))
    assert [rows.tokens_of(i)[0] for i in range(3)] == [6, 1, 4]


def test_errors_name_the_invalid_row(tmp_path):
    with pytest.raises(FimError, match=r"row-1 .* no tokens"):
        Rows.from_dataset(saved(tmp_path / "empty", [[1], []]))
    with pytest.raises(FimError, match="labels"):
        Rows.from_dataset(saved(tmp_path / "column", [[1]]).remove_columns("labels"))


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(row(), min_size=1, max_size=10), cut=st.integers(0, 10))
def test_label_summaries_equal_a_loop(pairs, cut):
    rows = to_rows(pairs)
    # The same rows with labels in two parts, cut between two rows.
    edge = int(rows.offsets[min(cut, len(pairs))])
    flat = np.array([label for _, labels in pairs for label in labels], np.int32)
    split = type(rows.labels)((flat[:edge], flat[edge:]))
    rows = Rows(rows.tokens, split, rows.offsets, rows.row_ids)
    for index, (tokens, labels) in enumerate(pairs):
        targets = [i for i in range(1, len(tokens)) if labels[i] != IGNORE_INDEX]
        assert rows.targets_per_row[index] == len(targets)
        assert rows.first_targets[index] == (targets[0] if targets else len(tokens))
        assert rows.labels_of(index).tolist() == labels
