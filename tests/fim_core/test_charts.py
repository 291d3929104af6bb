"""Charts: what is drawn stands where its numbers say."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from fim_core.charts import Line, histogram, interval_chart, line_chart, nice_step, thin

WIDTH, HEIGHT = 420, 130


def absolute(path: str) -> list[tuple[int, int]]:
    """Corners of a path that begins with M and goes on with relative steps."""
    first, _, rest = path.removeprefix("M").partition("l")
    numbers = [int(number) for number in re.findall(r"-?\d+", rest)]
    x, y = map(int, first.split())
    corners = [(x, y)]
    for right, down in zip(numbers[::2], numbers[1::2], strict=True):
        x, y = x + right, y + down
        corners.append((x, y))
    return corners


def test_a_line_rises_with_its_values_from_an_axis_at_zero() -> None:
    values = [0.0, 3.0, 10.0, 4.0, 4.0]
    svg = line_chart({"a": Line(list(enumerate(values)))}, size=(WIDTH, HEIGHT))
    corners = absolute(re.findall(r"<path d='(M[^']*)' stroke='#26e'", svg)[0])
    heights = [corners[0][1] - y for _, y in corners]
    assert heights == pytest.approx([height * heights[2] / 10 for height in values], abs=1)
    widths = [right[0] - left[0] for left, right in pairwise(corners)]
    assert max(widths) - min(widths) <= 1
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in corners)


def test_thinning_keeps_ends_and_ignores_spikes() -> None:
    line = [(float(step), float(step)) for step in range(400)]
    assert thin(line, 400) == line
    few = thin([(x, 1000.0 if x == 200 else y) for x, y in line], 20)
    assert len(few) == 20
    assert (few[0], few[-1]) == (line[0], line[-1])
    assert max(y for _, y in few) == 399
    assert thin(line, 2) == [line[0], line[-1]]


@pytest.mark.parametrize(("most", "step"), [(1, 1), (1.9, 1), (2.4, 2), (4.9, 2.5), (0.05, 0.05), (999, 500)])
def test_steps_of_an_axis_are_round(most: float, step: float) -> None:
    assert nice_step(most) == pytest.approx(step)


def test_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    svg = histogram([4, 0, 2], [0, 10, 20, 30], size=(WIDTH, HEIGHT))
    path = re.findall(r"<path d='(M[^']*)z'", svg)[0]
    base = int(path.split("V")[0].split()[1])
    heights = [base - int(part.split("h")[0]) for part in path.split("V")[1:4]]
    assert heights == pytest.approx([heights[0], 0, heights[0] / 2], abs=1)


def test_intervals_and_labels_are_escaped() -> None:
    svg = interval_chart({"<b> & 'c'": (0.5, 0.25, 0.75)})
    assert "<b>" not in svg
    (left, right), (value,) = (
        [int(x) for x in re.search(pattern, svg).groups()]  # type: ignore[union-attr]
        for pattern in (r"'M(\d+) 9H(\d+)'", r"'M(\d+) 9h0'")
    )
    assert value == pytest.approx((left + right) / 2, abs=1)
