"""Properties of the machine that the environment may change."""

from __future__ import annotations

import pytest

from fim_core.device import RETURNED_FROM, returned_from
from fim_core.errors import FimError


@pytest.mark.parametrize(("text", "size"), [("262144", 262144), ("0x40000", 262144), ("", 4 * 2**20)])
def test_the_threshold_of_glibc_is_read_as_glibc_reads_it(
    monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    monkeypatch.setenv(RETURNED_FROM, text)
    assert returned_from() == size


def test_a_threshold_that_is_no_number_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RETURNED_FROM, "4M")
    with pytest.raises(FimError, match=r"'4M'\. Set it to a number of bytes"):
        returned_from()
