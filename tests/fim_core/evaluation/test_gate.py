"""The gate: a worse candidate is refused, and so is one that has learnt nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from fim_core.config.evaluation import EvaluationConfig, GateConfig, GateRule
from fim_core.errors import FimError
from fim_core.evaluation.gate import Decision, RuleResult, decide
from fim_core.evaluation.report import build_report, write_report
from fim_core.evaluation.run import constant_predictions
from fim_core.evaluation.scores import EvalRow, Prediction, score

DDL = "CREATE TABLE orders (" + ", ".join(f"column_{i} NUMBER" for i in range(8)) + ");"
ROWS = [
    EvalRow(
        row_id=f"r{i}",
        type="identifier" if i % 5 else "nothing",
        group=f"g{i // 2}",
        prefix=f"SELECT column_{i % 7}, " if i % 5 else f"SELECT column_{i % 7}",
        suffix=" FROM orders",
        completion=f"column_{i % 8}" if i % 5 else "",
        ddl=DDL if i < 30 else "",
    )
    for i in range(80)
]


NOT_WORSE = GateConfig(rules=[GateRule(metric="exact_match_sql", rule="not_worse")])


def predictions(right: float, *, wrong: str = "made_up", seed: int = 0, nats: float = 2.0) -> list[Prediction]:
    """A share of the rows right, the others made up."""
    rng = Random(seed)
    return [Prediction(row.completion if rng.random() < right else wrong, True, nats, 2) for row in ROWS]


def decision(
    folder: Path,
    model: Sequence[Prediction],
    champion: Sequence[Prediction | None] | None = None,
    gate: GateConfig | None = None,
) -> Decision:
    constant = constant_predictions(ROWS, {"identifier": "column_3", "nothing": ""})
    made = constant | {"model": model} | ({"champion": champion} if champion else {})
    options = EvaluationConfig(bootstrap_samples=300)
    report = build_report(
        ROWS,
        made,
        score(ROWS, made, dialect="snowflake"),
        name="gate",
        options=options,
        seed=0,
        show_samples=False,
        held_out=len(ROWS),
    )
    write_report(folder, report)
    return decide(folder, gate or GateConfig(), has_champion=champion is not None)


def result(decided: Decision, metric: str, rule: str) -> RuleResult:
    return next(found for found in decided.results if (found.metric, found.rule) == (metric, rule))


def test_a_better_candidate_replaces_the_champion(tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(0.9), predictions(0.6, seed=1))
    assert decided.promote
    assert all(found.holds for found in decided.results)


def test_an_equal_candidate_is_not_worse(tmp_path: Path) -> None:
    assert decision(tmp_path, predictions(0.8), predictions(0.8)).promote


def test_a_worse_candidate_is_refused_with_numbers_and_reason(tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(0.6), predictions(0.9, seed=1))
    assert not decided.promote
    refused = result(decided, "exact_match_sql", "not_worse")
    assert refused.holds is False
    assert refused.numbers["difference"]["high"] < 0
    assert "loses" in refused.reason
    assert "against the champion" in refused.reason
    assert result(decided, "exact_match_sql", "beats_baselines").holds is True, "good enough otherwise"


def test_a_model_trained_on_shuffled_responses_is_refused(tmp_path: Path) -> None:
    """It has learnt what completions look like, and nothing of where they belong."""
    texts = [row.completion for row in ROWS]
    Random(4).shuffle(texts)
    shuffled = [Prediction(text, True, 9.0, 2) for text in texts]
    decided = decision(tmp_path, shuffled)
    assert not decided.promote
    assert result(decided, "exact_match_sql", "beats_baselines").holds is False
    assert result(decided, "loss", "finite").holds is True


def test_the_first_candidate_only_has_to_beat_the_baselines(tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(0.8))
    assert decided.promote
    assert {found.holds for found in decided.results if found.rule == "not_worse"} == {None}


def test_the_first_candidate_must_beat_the_baselines_whatever_the_gate(tmp_path: Path) -> None:
    gate = GateConfig(rules=[GateRule(metric="loss", rule="finite")])
    decided = decision(tmp_path, [Prediction("", True, 2.0, 2)] * len(ROWS), gate=gate)
    assert not decided.promote
    assert decided.results[-1].rule == "beats_baselines"
    assert decision(tmp_path, predictions(0.8), predictions(0.8), gate).promote, (
        "with a champion the gate's rules are all"
    )


def test_an_infinite_loss_is_refused(tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(0.9, nats=math.inf), predictions(0.6))
    assert not decided.promote
    assert result(decided, "loss", "finite").holds is False


def test_made_up_names_are_refused_by_binds(tmp_path: Path) -> None:
    """Both are right equally often; where the candidate is wrong, its names do not exist."""
    gate = GateConfig(rules=[GateRule(metric="parses", rule="not_worse"), GateRule(metric="binds", rule="not_worse")])
    decided = decision(tmp_path, predictions(0.7), predictions(0.7, wrong=", column_2"), gate)
    assert result(decided, "binds", "not_worse").holds is False
    assert not decided.promote


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        (GateRule(metric="exact_match_sql", rule="better"), False),
        (GateRule(metric="exact_match_sql", rule="not_worse"), False),
        (GateRule(metric="exact_match_sql", rule="not_worse", value=0.5), True),
        (GateRule(metric="exact_match_sql", rule="at_least", value=0.4), True),
        (GateRule(metric="exact_match_sql", rule="at_least", value=0.95), False),
        (GateRule(metric="loss", rule="at_most", value=1.5), True),
        (GateRule(metric="loss", rule="at_most", value=0.5), False),
        (GateRule(metric="loss", rule="better"), True),
        (GateRule(metric="runaway", rule="at_most", value=0.0), True),
        (GateRule(metric="bits_per_byte", rule="beats_baselines"), False),
    ],
)
def test_each_rule(rule: GateRule, holds: bool, tmp_path: Path) -> None:
    decided = decision(
        tmp_path, predictions(0.6, nats=2.0), predictions(0.85, seed=1, nats=4.0), GateConfig(rules=[rule])
    )
    assert [found.holds for found in decided.results] == [holds]
    assert decided.promote == holds
    assert decided.results[0].reason.endswith(".")


def test_a_candidate_that_stopped_abstaining_is_refused(tmp_path: Path) -> None:
    gate = GateConfig(rules=[GateRule(metric="abstention_precision", rule="not_worse")])
    never = [Prediction("made_up", True, 2.0, 2)] * len(ROWS)
    assert not decision(tmp_path, never, predictions(0.8), gate).promote
    beside = GateConfig(rules=[*gate.rules, GateRule(metric="loss", rule="finite")])
    assert decision(tmp_path, predictions(0.8), never, beside).promote, (
        "nothing to lose against a champion that never did"
    )


def test_by_default_neither_side_of_abstention_may_be_lost(tmp_path: Path) -> None:
    """Sixteen of eighty rows miss nothing: too few for the exact match of all to show what happens there."""
    right = predictions(1.0)

    def abstaining(wrong: set[int], text: str) -> list[Prediction]:
        return [Prediction(text, True, 2.0, 2) if place in wrong else made for place, made in enumerate(right)]

    full = [place for place, row in enumerate(ROWS) if row.completion]
    empty = [place for place, row in enumerate(ROWS) if not row.completion]
    talks = decision(tmp_path, abstaining(set(empty[:10]), "made_up"), abstaining(set(full[:10]), "made_up"))
    assert result(talks, "exact_match_sql", "not_worse").holds
    assert result(talks, "abstention_recall", "not_worse").holds is False
    assert not talks.promote
    keeps_silent = decision(tmp_path, abstaining(set(full[:16]), ""), abstaining(set(full[:16]), "made_up"))
    assert result(keeps_silent, "abstention_precision", "not_worse").holds is False
    assert not keeps_silent.promote


def test_reports_that_rules_cannot_be_applied_to_are_clear_mistakes(tmp_path: Path) -> None:
    decision(tmp_path, predictions(0.8))
    with pytest.raises(FimError, match="champion"):
        decide(tmp_path, GateConfig(), has_champion=True)
    with pytest.raises(FimError, match="no evaluation report"):
        decide(tmp_path / "nowhere", GateConfig(), has_champion=False)


def test_rows_that_the_champion_cannot_read_decide_nothing(tmp_path: Path) -> None:
    """A worse candidate is not saved by them, and one that is as good on the others does not fail by them."""
    unread = [None] * 40
    champion = [*unread, *predictions(0.9, seed=1)[40:]]
    worse = [*(Prediction(row.completion, True, 2.0, 2) for row in ROWS[:40]), *predictions(0.3)[40:]]
    refused = result(decision(tmp_path, worse, champion, NOT_WORSE), "exact_match_sql", "not_worse")
    assert refused.holds is False
    assert refused.numbers["difference"]["n"] == refused.numbers["champion"]["n"] == 40
    assert "cannot read 40 of the rows" in refused.reason
    equal = [Prediction("made_up", True, 2.0, 2)] * 40 + predictions(0.9, seed=1)[40:]
    assert decision(tmp_path, equal, champion, NOT_WORSE).promote


@pytest.mark.parametrize(("right", "promote"), [(0.95, True), (0.0, False)])
def test_a_champion_that_reads_no_row_leaves_the_baselines_to_beat(right: float, promote: bool, tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(right), [None] * len(ROWS), NOT_WORSE)
    against_champion = result(decided, "exact_match_sql", "not_worse")
    assert against_champion.holds is None
    assert "no row that the champion can read" in against_champion.reason
    assert result(decided, "exact_match_sql", "beats_baselines").holds is promote
    assert decided.promote is promote
