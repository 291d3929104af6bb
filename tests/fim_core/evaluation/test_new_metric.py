"""Adding a metric takes one definition and one registration: scores, report, page and gate rules follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from fim_core.champion.gate import decide
from fim_core.config.evaluation import EvaluationConfig, GateConfig, GateRule
from fim_core.evaluation.page import render_page
from fim_core.evaluation.report import build_report, write_predictions, write_report
from fim_core.evaluation.scores import Scores, judge_predictions, score
from fim_core.folders.report import ReportFolder
from fim_core.metrics.metric import Measure, Metric
from fim_core.metrics.registry import METRICS, register
from fim_core.metrics.rows import EvalRow, Prediction

LOWER_CASE = Metric(
    name="made_up_lower_case",
    title="Lower case, made up",
    meaning="of the letters that it writes, those in lower case",
    unit="share",
    over=Measure("lower_letters", lambda row: sum(map(str.islower, row.predicted))),
    per=Measure("letters", lambda row: sum(map(str.isalpha, row.predicted))),
    higher_is_better=False,
    headline=True,
)
"""From the prediction."""

PARSES_IN_VAIN = Metric(
    name="made_up_parses_in_vain",
    title="Parses in vain, made up",
    meaning="is understood, and does not bind",
    unit="share",
    over=Measure("parses_in_vain", lambda row: row.sql.get("parses") == 1 and row.sql.get("binds") == 0),
)
"""From what the SQL workers measured."""

ROWS = [
    EvalRow(f"r{i}", "kind", f"g{i}", "SELECT ", " FROM t", "a", "CREATE TABLE t (a NUMBER, bC NUMBER)")
    for i in range(8)
]
PREDICTIONS = {
    "model": [Prediction(text) for text in ("A", "bC", "a", "A", "zz", "zz", "", "A")],
    "base": [Prediction("a")] * 8,
}


def evaluate() -> tuple[Scores, dict[str, Any]]:
    scores = score(judge_predictions(ROWS, PREDICTIONS, dialect="snowflake"))
    options = EvaluationConfig(bootstrap_samples=100)
    report = build_report(
        ROWS, PREDICTIONS, scores, name="n", options=options, seed=0, show_samples=False, held_out=len(ROWS)
    )
    return scores, report


@pytest.fixture(scope="module")
def before() -> Mapping[str, Any]:
    """The report without the made-up metrics."""
    return evaluate()[1]


@pytest.fixture
def evaluated(before: Mapping[str, Any]) -> Iterator[tuple[Scores, dict[str, Any]]]:
    register(LOWER_CASE, PARSES_IN_VAIN)
    yield evaluate()
    for metric in (LOWER_CASE, PARSES_IN_VAIN):
        del METRICS[metric.name]


def test_the_report_holds_its_figures(evaluated: tuple[Scores, dict[str, Any]]) -> None:
    _, report = evaluated
    figure = report["metrics"]["made_up_lower_case"]
    assert (figure["value"], figure["n"]) == (pytest.approx(6 / 10), 7), "one row has no letters"
    assert report["metrics"]["made_up_parses_in_vain"]["value"] == 2 / 8
    assert report["others"]["base"]["differences"]["made_up_lower_case"]["value"] == pytest.approx(-0.4)
    assert report["by_type"]["kind"]["metrics"]["made_up_lower_case"] == figure
    assert report["definitions"]["made_up_lower_case"] == {
        "title": LOWER_CASE.title,
        "meaning": LOWER_CASE.meaning,
        "unit": "share",
        "higher_is_better": False,
    }


def test_the_figures_of_other_metrics_stay(evaluated: tuple[Scores, dict[str, Any]], before: dict[str, Any]) -> None:
    def without_made_up(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: without_made_up(value) for key, value in content.items() if not key.startswith("made_up_")}
        return content

    _, report = evaluated
    assert without_made_up(report) == before
    assert report != before


def test_page_predictions_and_gate_include_it(evaluated: tuple[Scores, dict[str, Any]], tmp_path: Path) -> None:
    scores, report = evaluated
    assert f'<div class="card"><span>{LOWER_CASE.title}</span><b>60.0%</b>' in render_page(report)
    write_predictions(tmp_path, ROWS, PREDICTIONS, scores)
    letters = pq.read_table(ReportFolder(tmp_path).predictions, columns=["letters", "base_letters"]).to_pydict()
    assert letters == {"letters": [1, 2, 1, 1, 2, 2, 0, 1], "base_letters": [1] * 8}
    write_report(tmp_path, report)
    rule = GateRule(metric="made_up_lower_case", rule="at_most", value=0.5)
    first = decide(tmp_path, GateConfig(rules=[rule]), has_champion=False).results[0]
    assert first.holds is False
    assert first.reason == "Lower case, made up: 60.0%, 7 rows. Failed: at most 50.0% is required."


def test_an_unregistered_metric_is_not_a_gate_rule() -> None:
    with pytest.raises(ValidationError, match="made_up_lower_case"):
        GateRule(metric="made_up_lower_case", rule="finite")


def test_names_are_taken_once() -> None:
    register(LOWER_CASE)
    try:
        with pytest.raises(ValueError, match="two metrics named made_up_lower_case"):
            register(LOWER_CASE)
        same_column = Metric("made_up", "t", "m", "share", Measure("letters", lambda row: 0))
        with pytest.raises(ValueError, match="measure named letters"):
            register(same_column)
        register(Metric("made_up", "t", "m", "share", LOWER_CASE.measures[1]))
    finally:
        for name in ("made_up_lower_case", "made_up"):
            METRICS.pop(name, None)
