"""The page is well formed, self-contained, and safe against markup in rows."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import ClassVar

import pytest

from fim_core.config.evaluation import EvaluationConfig
from fim_core.errors import FimError
from fim_core.evaluation.eval_set import MostFrequent
from fim_core.evaluation.formatting import show_difference, show_figure
from fim_core.evaluation.page import render_page, write_page
from fim_core.evaluation.report import build_report
from fim_core.evaluation.run import constant_predictions
from fim_core.evaluation.scores import score
from fim_core.metrics.rows import EvalRow, Prediction

EVIL = "'</pre><script>alert(1)</script><img src=x onerror=y>"
ROWS = [
    EvalRow(f"r{i}", f"kind<{i % 2}>", f"g{i}", "SELECT ", f" FROM t{i}", EVIL if i == 1 else f"c{i}") for i in range(8)
]


def page(*, champion: bool = True, show_samples: bool = True) -> str:
    made = constant_predictions(ROWS, MostFrequent("c1", {})) | {
        "base": [Prediction(EVIL, True, 3.0, 2) for _ in ROWS],
        "model": [Prediction(r.completion, True, 1.0, 2) for r in ROWS[:6]] + [Prediction(EVIL)] * 2,
    }
    if champion:
        made["champion"] = [Prediction("c1", True, 1.0, 2) for _ in ROWS]
    scores = score(ROWS, made, dialect="snowflake")
    scores.over_limit = {"accepted": Counter(timeout=2), "model": Counter(out_of_memory=1)}
    report = build_report(
        ROWS,
        made,
        scores,
        name="a <b> & c",
        options=EvaluationConfig(bootstrap_samples=100),
        seed=0,
        show_samples=show_samples,
        held_out=20,
    )
    return render_page(report)


class Outline(HTMLParser):
    """Open tags and whether they are closed in order."""

    void: ClassVar = {"meta", "link", "br", "img", "line", "rect", "path"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_completions_whose_sql_was_stopped_are_counted() -> None:
    text = " ".join(page(champion=False).split())
    assert "2 accepted completions: SQL stopped (timeout)." in text
    assert "1 completions of this model: SQL stopped (out of memory)." in text


@pytest.mark.parametrize("champion", [True, False])
@pytest.mark.parametrize("show_samples", [True, False])
def test_page_is_well_formed_and_loads_nothing(champion: bool, show_samples: bool) -> None:
    text = page(champion=champion, show_samples=show_samples)
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert not {"script", "img", "link", "iframe"} & set(outline.seen)
    assert "svg" in outline.seen
    assert not re.search(r"https?://|url\(|@import|\ssrc=", text.replace("src=x", ""))
    assert ("minus champion" in text) == champion
    assert "minus base model" in text
    assert "uses the TYPE column, which is not part of the prompt; shown for information" in text
    assert "Exact match, SQL tokens: 75.0%, base model 12.5%: +62.5 points" in text
    assert "no gain in" not in text
    assert "the smallest gain in Exact match, SQL tokens that the gate can detect" in text
    assert text.count('class="bar champion"') == (4 + 2 + 2 if champion else 0), "of figures, TYPEs and lengths"
    assert ("alert(1)" in text) == show_samples, "texts only where they are asked for, and then escaped"


def test_figures_for_people() -> None:
    assert show_figure(0.1234, "share") == "12.3%"
    assert show_difference(-0.05, "share") == "-5.0 points"
    assert show_difference(0.05, "share", name_unit=False) == "+5.0"
    assert show_difference(-0.31, "nats/token") == "-0.31 nats/token"
    assert show_figure(1.2345, "nats/token") == "1.23"
    assert show_figure(None, "share") == "not finite"


def test_a_page_is_not_written_into_a_folder_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(FimError):
        write_page(gone)
    assert not gone.exists()
