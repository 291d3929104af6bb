"""Plots: bounded in size, and smoothed where a line is noisy."""

from __future__ import annotations

import base64
import io
import random

import dagster as dg
import pytest
from PIL import Image

from fim_assets.metadata.plots import Histogram, _running_median, curves, histograms, intervals

MOST_BYTES = 100_000


def noise(points: int) -> list[tuple[float, float]]:
    rng = random.Random(points)
    return [(step, rng.random() * 10_000) for step in range(points)]


@pytest.mark.parametrize(
    "value",
    [
        curves({name: {"training": noise(50_000), "held-out": noise(200)} for name in ("loss", "rate", "speed")}),
        curves({"loss": {"training": noise(3)}}),
        curves({}),
        histograms([Histogram(str(n), range(1, 41), range(41), "tokens", "rows") for n in range(3)]),
        intervals({f"a metric with a long name {n}": (0.5, n / 40, 1) for n in range(20)}, title="shares"),
    ],
    ids=["long curves", "short curve", "no curve", "histograms", "intervals"],
)
def test_a_plot_is_an_image_under_100_kb(value: dg.MarkdownMetadataValue) -> None:
    assert len(value.md_str) < MOST_BYTES
    picture = base64.b64decode(value.md_str.partition("base64,")[2].removesuffix(")"))
    Image.open(io.BytesIO(picture)).verify()


def test_the_running_median_follows_a_line_and_ignores_spikes() -> None:
    line = [(step, float(step)) for step in range(400)]
    assert _running_median(line) == line
    spiked = [(step, 1000.0 if step == 200 else value) for step, value in line]
    assert max(value for _, value in _running_median(spiked)) == 399
