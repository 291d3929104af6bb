"""The page is well formed, self-contained, and safe against markup in rows."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fim_core.config.evaluation import EvaluationConfig
from fim_core.errors import FimError
from fim_core.evaluation.eval_set import MostFrequent
from fim_core.evaluation.formatting import show_difference, show_figure
from fim_core.evaluation.page import render_markdown, render_page, write_page
from fim_core.evaluation.page.background import Background, Version
from fim_core.evaluation.report import build_report, write_report
from fim_core.evaluation.run import constant_predictions
from fim_core.evaluation.scores import judge_predictions, score
from fim_core.folders.report import ReportFolder
from fim_core.metrics.rows import EvalRow, Prediction

EVIL = "'</pre><script>alert(1)</script><img src=x onerror=y>"
ROWS = [
    EvalRow(f"r{i}", f"kind<{i % 2}>", f"g{i}", "SELECT ", f" FROM t{i}", EVIL if i == 1 else f"c{i}") for i in range(8)
]


GATE = {
    "promote": False,
    "results": [
        {"metric": "exact_match_sql", "rule": "better_than_base", "holds": False, "reason": "<i>no gain</i>"},
        {"metric": "exact_match_sql", "rule": "not_worse", "holds": None, "reason": "no champion"},
    ],
}


def version(place: int, experiment: str = "a <b> & c") -> Version:
    figure = {"value": place / 10, "low": 0.0, "high": 0.9, "n": 8, "groups": 8}
    return Version(f"version{place}", experiment, place, "2026-01-01 00:00", figure, promoted=place == 1)


BACKGROUND = Background(
    gate=GATE,
    versions=[version(1), version(2, "other"), version(3)],
    losses={"training": [(1, 2.0), (2, 1.5)], "held-out": [(2, 1.0)]},
)


def page(*, champion: bool = True, show_samples: bool = True, background: Background | None = None) -> str:
    return render_page(report_of(champion=champion, show_samples=show_samples), background)


def report_of(*, champion: bool = True, show_samples: bool = True) -> dict[str, Any]:
    made = constant_predictions(ROWS, MostFrequent("c1", {})) | {
        "base": [Prediction(EVIL, True, 3.0, 2) for _ in ROWS],
        "model": [Prediction(r.completion, True, 1.0, 2) for r in ROWS[:6]] + [Prediction(EVIL)] * 2,
    }
    if champion:
        made["champion"] = [Prediction("c1", True, 1.0, 2) for _ in ROWS]
    scores = score(judge_predictions(ROWS, made, dialect="snowflake"))
    scores.over_limit = {"accepted": Counter(timeout=2), "model": Counter(out_of_memory=1)}
    return build_report(
        ROWS,
        made,
        scores,
        name="a <b> & c",
        options=EvaluationConfig(bootstrap_samples=100),
        seed=0,
        show_samples=show_samples,
        held_out=20,
    )


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


@pytest.mark.parametrize("background", [None, BACKGROUND], ids=["alone", "with background"])
@pytest.mark.parametrize("champion", [True, False])
@pytest.mark.parametrize("show_samples", [True, False])
def test_page_is_well_formed_and_loads_nothing(
    champion: bool, show_samples: bool, background: Background | None
) -> None:
    text = page(champion=champion, show_samples=show_samples, background=background)
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


def test_the_background_is_on_the_page() -> None:
    text = page(background=BACKGROUND)
    assert "The gate refuses this model: 1 of 2 rules fail." in text
    assert "&lt;i&gt;no gain&lt;/i&gt;" in text
    assert "3: <code>version3</code> (this report)" in text
    assert "1: <code>version1</code>" in text
    assert "version2" not in text, "another experiment is only in the plot"
    assert ">other</text>" in text
    assert ">optimizer step</tspan>" in text
    assert "<span>accepted</span>" in text
    assert not {"<h2>Gate</h2>", "<h2>Versions</h2>", "<h2>Training</h2>"} & set(page().splitlines())


def test_markdown_has_the_same_verdict_and_its_pictures_inside() -> None:
    parts = render_markdown(report_of(), BACKGROUND)
    assert set(parts) == {"report", "slices", "examples"}
    assert "**The gate refuses this model: 1 of 2 rules fail.**" in parts["report"]
    assert parts["report"].count("![plot](<data:image/svg+xml,") == 3
    assert "1 rules do not apply" in parts["report"]
    for text in parts.values():
        outside_code = re.sub(r"^(```+)\w+\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
        assert not re.search(r"(?<!\\)<(script|i>|0>)", outside_code), "markup in rows, types and reasons is escaped"
    assert "examples" not in render_markdown(report_of(show_samples=False), BACKGROUND)
    assert "alert(1)" not in str(render_markdown(report_of(show_samples=False)))


def test_a_page_is_written_again_only_if_it_has_changed(tmp_path: Path) -> None:
    write_report(tmp_path, report_of())
    file = ReportFolder(tmp_path).page
    write_page(tmp_path)
    before = file.stat().st_ino
    write_page(tmp_path)
    assert file.stat().st_ino == before
    write_page(tmp_path, BACKGROUND)
    assert file.read_text() == render_page(report_of(), BACKGROUND)


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


def test_a_report_of_earlier_code_has_a_page_without_a_filter() -> None:
    report = report_of()
    del report["show"]
    assert "What editors show" not in render_page(report)
    assert "What editors show" not in render_markdown(report)["report"]
