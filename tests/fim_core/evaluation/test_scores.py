"""All measures of a row, on hand-made cases where rules for text or other languages are wrong for SQL."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fim_core.evaluation.aggregate import Bootstrap, estimates
from fim_core.evaluation.scores import Scores, judge_predictions, score
from fim_core.metrics.rows import EvalRow, Prediction

DDL = "CREATE TABLE t (a NUMBER, aANDb BOOLEAN, url VARCHAR, x VARCHAR);"


def judged(gold: str, predicted: str, prefix: str = "SELECT ", suffix: str = " FROM t", ddl: str = DDL) -> dict:
    """Every measure of one prediction; those that do not apply are left out."""
    row = EvalRow("r", "kind", "g", prefix, suffix, gold, ddl)
    columns = score(judge_predictions([row], {"model": [Prediction(predicted)]}, dialect="snowflake")).columns["model"]
    return {name: values[0] for name, values in columns.items() if not np.isnan(values[0])}


def test_a_string_is_not_a_quoted_name() -> None:
    found = judged("'x'", '"x"')
    assert (found["exact_match_sql"], found["edit_similarity"]) == (0, pytest.approx(1 / 3))
    assert (found["parses"], found["binds"]) == (1, 0), "there is a column X, and none that is written x"
    assert (found["identifiers_gold"], found["identifiers_predicted"]) == (0, 1)
    assert judged('"X"', "x")["execution_match"] == 1, "two spellings of one column"
    assert judged('"X"', "x")["exact_match_sql"] == 0


def test_white_space_separates_words() -> None:
    found = judged("a AND b", "aANDb", prefix="SELECT 1 FROM t WHERE ", suffix="")
    assert found["exact_match_sql"] == 0
    assert found["prefix_match_chars"] == 1
    assert judged("a\n  AND  aANDb", "A and aandb", prefix="SELECT 1 FROM t WHERE ", suffix="")["exact_match_sql"] == 1


def test_the_slashes_of_a_url_do_not_begin_a_comment() -> None:
    found = judged("url = 'http://one'", "url = 'http://two'", prefix="SELECT a FROM t WHERE ", suffix="")
    assert (found["exact_match_sql"], found["parses"], found["binds"]) == (0, 1, 1)
    assert found["execution_match"] == 0
    assert judged("one'", "two'", prefix="SELECT 'http://", suffix=" FROM t")["exact_match_sql"] == 0
    cut = judged("'http://one'", "'http:", prefix="SELECT ", suffix=" FROM t")
    assert (cut["exact_match_sql"], cut["parses"]) == (0, 0)


def test_the_case_of_keywords_is_ignored() -> None:
    found = judged("DISTINCT a", "distinct A")
    assert (found["exact_match"], found["exact_match_sql"], found["first_line_match"]) == (0, 1, 0)
    assert (found["execution_match"], found["identifiers_matched"]) == (1, 1)


def test_null_is_an_answer() -> None:
    right, nothing = judged("NULL", "null"), judged("NULL", "")
    assert (right["exact_match_sql"], right["gold_empty"], right["predicted_empty"]) == (1, 0, 0)
    assert (nothing["exact_match_sql"], nothing["gold_empty"], nothing["predicted_empty"]) == (0, 0, 1)
    assert nothing["both_empty"] == 0
    assert judged("", "NULL")["exact_match"] == 0
    assert judged("007", "7")["exact_match_sql"] == 0


def test_measures_of_a_row_by_hand() -> None:
    row = EvalRow("r", "kind", "g", "SELECT ", "\nFROM t", "a, x", DDL)
    made = Prediction("a, x\nFROM t", stopped=False, nats=2.0, tokens=4, end_nats=0.5)
    columns = score(judge_predictions([row], {"model": [made]}, dialect="snowflake")).columns["model"]
    assert {name: value[0] for name, value in columns.items() if not np.isnan(value[0])} == {
        "exact_match": 0,
        "exact_match_sql": 0,
        "edit_similarity": pytest.approx(4 / 11),
        "first_line_match": 1,
        "prefix_match_chars": 4,
        "parses": 0,
        "binds": 0,
        "execution_match": 0,
        "identifiers_matched": 2,
        "identifiers_predicted": 3,
        "identifiers_gold": 2,
        "repeats_suffix": 1,
        "runaway": 1,
        "gold_empty": 0,
        "predicted_empty": 0,
        "both_empty": 0,
        "gold_chars": 4,
        "gold_bytes": 4,
        "loss_nats": 2.0,
        "loss_bits": pytest.approx(2.0 / math.log(2)),
        "loss_tokens": 4,
        "loss_end_nats": 0.5,
        "loss_text_nats": 1.5,
        "loss_text_tokens": 3,
    }


@pytest.mark.parametrize(
    ("nats", "end", "tokens", "text"), [(0.5, 0.5, 1, 0.0), (math.inf, math.inf, 1, 0.0), (math.inf, 0.5, 2, math.inf)]
)
def test_the_text_part_of_a_loss(nats: float, end: float, tokens: int, text: float) -> None:
    made = Prediction("", nats=nats, tokens=tokens, end_nats=end)
    columns = score(
        judge_predictions([EvalRow("r", "kind", "g", "SELECT ", "", "a")], {"model": [made]}, dialect="snowflake")
    ).columns
    assert columns["model"]["loss_text_nats"] == [text]
    assert columns["model"]["loss_end_nats"] == [end]


def test_rows_without_an_execution_match_are_counted_by_reason() -> None:
    def row(completion: str, ddl: str = DDL, prefix: str = "SELECT a FROM t WHERE ") -> EvalRow:
        return EvalRow("r", "kind", "g", prefix, ";", completion, ddl)

    rows = [row("a > 0"), row("a IS NULL AND a = 1"), row("a > 0", ddl=""), row("a > 0", prefix="DELETE FROM t WHERE ")]
    found = score(judge_predictions(rows, {"model": [Prediction("a >= 1")] * 4}, dialect="snowflake"))
    assert found.executions == {"compared": 1, "empty_result": 1, "not_bound": 1, "not_a_query": 1}
    assert np.isnan(found.columns["model"]["execution_match"]).tolist() == [False, True, True, True]


def test_abstention_counts_what_was_left_empty_and_what_should_be() -> None:
    golds, made = ["", "", "a", "x"], ["", "a", " \n", "x"]
    rows = [EvalRow(f"r{i}", "kind", f"g{i}", "SELECT a", " FROM t", gold) for i, gold in enumerate(golds)]
    scores: Scores = score(judge_predictions(rows, {"model": [Prediction(text) for text in made]}, dialect="snowflake"))
    found = estimates(scores.columns["model"], np.arange(4), Bootstrap(100, 0.95, 0))
    precision, recall = found["abstention_precision"], found["abstention_recall"]
    assert (precision.value, precision.n) == (0.5, 2)
    assert (recall.value, recall.n) == (0.5, 2)


def test_a_completion_is_compared_with_what_the_tokenizer_can_write() -> None:
    """Its best is the gold completion as it gives it back; a constant without a tokenizer is compared as it is."""
    gold, composed = "'cafe\u0301'", "'caf\u00e9'"
    row = EvalRow("r", "t", "g", "SELECT ", " FROM t", gold)
    predictions = {
        "model": [Prediction(composed, gold=composed)],
        "wrong": [Prediction(composed + " x", gold=composed)],
        "constant": [Prediction(composed)],
    }
    columns = score(judge_predictions([row], predictions, dialect="snowflake")).columns
    assert [columns[name]["exact_match"][0] for name in predictions] == [1, 0, 0]
    assert [columns[name]["exact_match_sql"][0] for name in predictions] == [1, 0, 0]
    assert columns["wrong"]["prefix_match_chars"][0] == len(composed)
