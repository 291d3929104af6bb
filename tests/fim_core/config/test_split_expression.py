"""Slices of a split, against the datasets library."""

from __future__ import annotations

import pytest
from datasets import ReadInstruction

from fim_core.config.split_expression import parse_split

SLICES = ["[:]", "[10:20]", "[:10]", "[10:]", "[-5:]", "[:-5]", "[:10%]", "[10%:20%]", "[-15%:]", "[33%:67%]", "[1_0:2_0]",
          "[90:10]", "[0:0]", "[10:20%]", "[500:]", "[-500:3]"]  # fmt: skip


@pytest.mark.parametrize("total", [0, 1, 3, 10, 99, 100, 1001])
@pytest.mark.parametrize("written", SLICES)
def test_a_slice_has_the_rows_of_the_datasets_library(written: str, total: int) -> None:
    name, within = parse_split(f"train{written}")
    assert name == "train"
    assert within is not None
    (wanted,) = ReadInstruction.from_spec(f"train{written}").to_absolute({"train": total})
    assert list(within.rows(total)) == list(range(total))[wanted.from_ : wanted.to]


def test_a_split_without_a_slice_is_a_name() -> None:
    assert parse_split("train_sft") == ("train_sft", None)


@pytest.mark.parametrize(
    "split",
    ["train[", "train[5]", "train[a:b]", "[:5]", "train[:5]+test[:5]", "train[%:]", "train[:5%](pct1_dropremainder)"],
)
def test_an_invalid_slice_is_refused(split: str) -> None:
    with pytest.raises(ValueError, match=r"train\[10:20\]"):
        parse_split(split)


def test_no_more_than_everything() -> None:
    with pytest.raises(ValueError, match="beyond 100%"):
        parse_split("train[:120%]")
