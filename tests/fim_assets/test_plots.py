"""Pictures in Dagster's UI: as detailed as fits into the characters that the UI shows in place."""

from __future__ import annotations

import random
from collections.abc import Callable
from urllib.parse import unquote
from xml.etree import ElementTree

import dagster as dg
import pytest

from fim_assets.metadata import plots
from fim_core.charts import Line

SHOWN_CHARACTERS = 999


def noise(points: int) -> list[tuple[float, float]]:
    rng = random.Random(points)
    return [(step, rng.random() * 10_000) for step in range(points)]


def versions(places: list[int]) -> Line:
    values = [(place, 0.2 + place / 200) for place in places]
    return Line(values, [(value - 0.1, value + 0.1) for _, value in values])


PICTURES: dict[str, Callable[[], dg.MarkdownMetadataValue]] = {
    "long curves": lambda: plots.curves({"training": noise(50_000), "held-out": noise(200)}),
    "short curve": lambda: plots.curves({"learning rate": noise(3)}),
    "one point": lambda: plots.curves({"one point": noise(1)}),
    "no curve": lambda: plots.curves({}),
    "many lengths": lambda: plots.lengths(range(1, 41), range(0, 41_000, 1000)),
    "one length": lambda: plots.lengths([0], [0, 1]),
    "many shares": lambda: plots.shares({f"a metric with a long name {n}": (0.5, n / 40, 1) for n in range(20)}),
    "no share": lambda: plots.shares({}),
    "many versions": lambda: plots.versions(
        {"demo": versions(list(range(1, 60, 2))), "a & <b>'s": versions(list(range(2, 60, 2)))}
    ),
    "one version": lambda: plots.versions({"demo": versions([1])}),
    "no version": lambda: plots.versions({}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_valid_and_shown_in_place(name: str) -> None:
    value = PICTURES[name]()
    assert len(value.md_str) <= SHOWN_CHARACTERS
    assert value.md_str.startswith("![plot](<data:image/svg+xml,")
    svg = unquote(value.md_str.removeprefix("![plot](<data:image/svg+xml,").removesuffix(">)"))
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert not set(value.md_str[len("![plot](<") : -2]) & set("<>&\n")
