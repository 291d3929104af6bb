"""Fitting the completion filter in an evaluation, and the figures of what is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fim_core.confidence.filter import CompletionFilter
from fim_core.confidence.fit import FEWEST
from fim_core.config.evaluation import EvaluationConfig, ShowConfig
from fim_core.evaluation.page import shown_sentence
from fim_core.evaluation.report import build_report
from fim_core.evaluation.scores import Judged, Scores, judge_predictions, score
from fim_core.evaluation.selection import Selection, Verdicts, fits, select, with_shown
from fim_core.metrics.rows import EvalRow, Prediction

ROWS = [EvalRow(f"r{i}", "kind", f"g{i // 4}", "SELECT ", " FROM t", f"c{i % 7}") for i in range(400)]
OPTIONS = EvaluationConfig(bootstrap_samples=100, show=ShowConfig(lose_accepted=0.1))


def predicted(*, informative: bool = True, seed: int = 1) -> list[Prediction | None]:
    """Predictions of which half are right; the probabilities of right ones are higher, if they are informative."""
    rng = np.random.default_rng(seed)
    made: list[Prediction | None] = []
    for row in ROWS:
        right = rng.random() < 0.5
        logprob = -rng.exponential(1 if right or not informative else 4)
        made.append(Prediction(row.completion if right else "wrong", logprobs=[logprob]))
    return made


def selected(model: list[Prediction | None], options: EvaluationConfig = OPTIONS) -> tuple[Judged, Selection]:
    judged = judge_predictions(ROWS, {"model": model, "empty": [Prediction("")] * len(ROWS)}, dialect="duckdb")
    return judged, select(judged, options, seed=1)


def figures(judged: Judged, selection: Selection) -> dict:
    scores: Scores = score(with_shown(judged, {"model": selection.filter}))
    predictions = {name: [row.prediction if row else None for row in rows] for name, rows in judged.completed.items()}
    return build_report(
        ROWS,
        predictions,
        scores,
        name="tiny",
        options=OPTIONS,
        seed=1,
        show_samples=False,
        held_out=len(ROWS),
        show=selection.report,
    )


def test_the_figures_are_those_of_the_half_that_the_filter_was_not_fitted_to() -> None:
    judged, selection = selected(predicted())
    assert selection.filter is not None
    report = figures(judged, selection)
    rest = [row for row in judged.completed["model"] if row is not None and not fits(row)]
    assert 100 < len(rest) < 300
    assert report["show"]["measured_on"]["rows"] == len(rest)
    assert report["show"]["fitted_to"]["rows"] == len(ROWS) - len(rest)
    confidences = np.array(
        [selection.filter.confidence(np.array([row.prediction.logprobs[0], 1, 0, 0])) for row in rest]
    )
    right = np.array([row.is_correct for row in rest])
    shown = confidences >= selection.filter.threshold
    expected = {
        "coverage": shown.mean(),
        "shown_precision": right[shown].mean(),
        "correct_hidden": (~shown)[right].mean(),
        "wrong_hidden": (~shown)[~right].mean(),
    }
    assert {name: report["metrics"][name]["value"] for name in expected} == pytest.approx(expected)
    assert expected["shown_precision"] > right.mean() + 0.1
    assert f"hides {expected['wrong_hidden']:.1%} of the wrong" in shown_sentence(report)
    assert report["show"]["curves"]["correct"][-1]["precision"] == pytest.approx(right.mean())
    assert not {"coverage", "shown_precision"} & set(report["others"]["empty"]["metrics"]), "constants are not served"


def test_probabilities_without_information_gain_nothing() -> None:
    gains = []
    for seed in range(6):
        judged, selection = selected(predicted(informative=False, seed=seed))
        report = figures(judged, selection)
        gains.append(
            report["metrics"]["shown_precision"]["value"] - report["show"]["curves"]["correct"][-1]["precision"]
        )
    assert abs(np.mean(gains)) < 0.03


def test_each_model_is_shown_through_its_own_filter() -> None:
    judged = judge_predictions(ROWS, {"model": predicted(), "champion": predicted(seed=2)}, dialect="duckdb")
    weights = {"logprob": 1.0, "parses": 0.0, "binds": 0.0, "does_not_bind": 0.0}
    strict = CompletionFilter(weights, 0.0, threshold=1.0, dialect="duckdb")
    columns = score(with_shown(judged, {"model": None, "champion": strict})).columns
    assert np.nansum(columns["model"]["shown"]) == np.nansum(columns["model"]["written"]) > 0
    assert np.nansum(columns["champion"]["shown"]) == 0


@pytest.mark.parametrize(
    ("options", "model", "reason"),
    [
        (OPTIONS.model_copy(update={"show": None}), predicted(), "`evaluation.show` is null"),
        (OPTIONS, [Prediction("wrong", logprobs=[-1.0])] * len(ROWS), "0 of the"),
        (OPTIONS, [Prediction("")] * len(ROWS), "0 of the 0 completions"),
    ],
)
def test_without_a_filter_the_report_says_why(
    options: EvaluationConfig, model: list[Prediction | None], reason: str
) -> None:
    judged, selection = selected(model, options)
    assert selection.filter is None
    sentence = shown_sentence(figures(judged, selection))
    assert reason in sentence
    assert "show every completion" in sentence


@pytest.fixture(scope="module")
def judged() -> Judged:
    return judge_predictions(ROWS, {"model": predicted()}, dialect="duckdb")


def with_verdicts(judged: Judged, accepted: int, rejected: int) -> Selection:
    """A filter with verdicts: as many in each half, where the model is as confident as in correct completions."""
    model = [row for row in judged.completed["model"] if row is not None]
    halves = [[row for row in model if fits(row) is half and row.is_correct] for half in (True, False)]
    chosen = {row.row.row_id for half in halves for row in half[:accepted]}
    again = [replace(row, rejected=True) for half in halves for row in half[:rejected]]
    return select(judged, OPTIONS, 1, Verdicts(again, chosen))


def test_rejected_completions_are_wrong_ones(judged: Judged) -> None:
    plain = select(judged, OPTIONS, 1)
    assert plain.report["feedback"] is None
    selection = with_verdicts(judged, FEWEST, 2 * FEWEST)
    counted = {"accepted": FEWEST, "rejected": 2 * FEWEST}
    assert selection.report["feedback"] == {"used": True, "fitted_to": counted, "measured_on": counted}
    for half in ("fitted_to", "measured_on"):
        assert selection.report[half]["rows"] == plain.report[half]["rows"] + 2 * FEWEST
        assert selection.report[half]["correct"] == plain.report[half]["correct"]
    # As likely to be rejected as they are to be accepted, so the confidence in them is lower.
    sure = np.array([0.0, 1, 0, 0])
    assert selection.filter is not None
    assert plain.filter is not None
    assert selection.filter.confidence(sure) < plain.filter.confidence(sure) - 0.1
    calibration = selection.report["calibration"]
    assert np.mean([abs(part["confidence"] - part["correct"]) for part in calibration]) < 0.1
    everything = selection.report["curves"]["correct"][-1]["precision"]
    assert everything == pytest.approx(
        selection.report["measured_on"]["correct"] / selection.report["measured_on"]["rows"]
    )
    assert selection.report["shown"]["shown_precision"] > everything


@pytest.mark.parametrize(("accepted", "rejected"), [(FEWEST - 1, 40), (40, FEWEST - 1)])
def test_too_few_verdicts_change_nothing(judged: Judged, accepted: int, rejected: int) -> None:
    plain = select(judged, OPTIONS, 1)
    selection = with_verdicts(judged, accepted, rejected)
    assert selection.filter == plain.filter
    assert selection.report["feedback"]["used"] is False
    assert {**selection.report, "feedback": None} == plain.report


def test_the_sentence_says_what_the_filter_was_fitted_to(judged: Judged) -> None:
    assert shown_sentence(figures(judged, with_verdicts(judged, 20, 40))).endswith(
        " Users had accepted 20 and rejected 40 of the completions that it was fitted to, and accepted 20 and rejected 40 of "
        "those that it was measured on. The metric 'Precision when shown' does not count the rejected ones."
    )
    assert shown_sentence(figures(judged, with_verdicts(judged, 20, 7))).endswith(
        "users had accepted 20 and rejected 7 of what the model still writes, and 20 of each are needed."
    )


def test_options_ask_for_one_rule() -> None:
    for wrong in ({}, {"lose_accepted": 0.1, "precision": 0.5}):
        with pytest.raises(ValueError, match="set either"):
            ShowConfig(**wrong)
