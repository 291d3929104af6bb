"""The gate refuses worse candidates, and candidates that have learnt nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from fim_core.champion.gate import Decision, RuleResult, decide
from fim_core.config.evaluation import EvaluationConfig, GateConfig, GateRule
from fim_core.errors import FimError
from fim_core.evaluation.eval_set import MostFrequent
from fim_core.evaluation.report import build_report, write_report
from fim_core.evaluation.run import constant_predictions
from fim_core.evaluation.scores import judge_predictions, score
from fim_core.folders.report import ReportFolder
from fim_core.metrics.rows import EvalRow, Prediction

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
    return [Prediction(row.completion if rng.random() < right else wrong, True, nats, 2, 1.0) for row in ROWS]


BASE = predictions(0.02, seed=9, nats=5.0)


def decision(
    folder: Path,
    model: Sequence[Prediction],
    champion: Sequence[Prediction | None] | None = None,
    gate: GateConfig | None = None,
    *,
    base: Sequence[Prediction] | None = BASE,
    most_frequent: str = "column_3",
    unavailable: dict[str, str] | None = None,
) -> Decision:
    constant = constant_predictions(ROWS, MostFrequent(most_frequent, {"identifier": "column_3", "nothing": ""}))
    made = constant | {"model": model}
    made |= {name: given for name, given in (("base", base), ("champion", champion)) if given}
    options = EvaluationConfig(bootstrap_samples=300)
    report = build_report(
        ROWS,
        made,
        score(judge_predictions(ROWS, made, dialect="snowflake")),
        name="gate",
        options=options,
        seed=0,
        show_samples=False,
        held_out=len(ROWS),
        unavailable=unavailable,
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
    assert refused.differences["champion"]["high"] < 0
    assert "Failed: the loss is larger than chance." in refused.reason
    assert "champion 9" in refused.reason
    assert result(decided, "exact_match_sql", "better_than_base").holds is True, "good enough otherwise"


def test_a_model_trained_on_shuffled_responses_is_refused(tmp_path: Path) -> None:
    """It has learnt what completions look like, and nothing of where they belong.

    That is far better than a base which does not know the format, but not better than the best constant.
    """
    texts = [row.completion for row in ROWS]
    Random(4).shuffle(texts)
    shuffled = [Prediction(text, True, 4.0, 2, 1.0) for text in texts]
    hopeless = [Prediction("made_up", True, 9.0, 2, 1.0) for _ in ROWS]
    decided = decision(tmp_path, shuffled, base=hopeless)
    assert not decided.promote
    assert result(decided, "exact_match_sql", "better_than_base").holds is True
    assert result(decided, "loss_text", "better_than_base").holds is True
    assert result(decided, "exact_match_sql", "better_than_constants").holds is False
    assert result(decided, "loss", "finite").holds is True


def test_a_model_that_learnt_the_format_and_forgot_the_rest_is_refused_by_its_loss(tmp_path: Path) -> None:
    """The base knows what comes next, but writes on and on; the candidate stops, and knows less."""
    base = [Prediction(row.completion + ", and", True, 2.0, 2, 1.0) for row in ROWS]
    decided = decision(tmp_path, predictions(0.6, nats=3.0), base=base)
    assert not decided.promote
    assert [found.rule for found in decided.results if found.holds is False] == ["better_than_base"]
    assert (
        "lower is better. Failed: the loss is larger than chance"
        in result(decided, "loss_text", "better_than_base").reason
    )


def test_an_untrained_adapter_is_refused(tmp_path: Path) -> None:
    """Its base is good, far better than every constant; the difference is exactly 0 everywhere."""
    base = predictions(0.8)
    decided = decision(tmp_path, base, base=base)
    assert not decided.promote
    refused = result(decided, "exact_match_sql", "better_than_base")
    assert refused.holds is False
    assert "Failed: there is no difference" in refused.reason
    assert refused.differences["base"]["detectable"] > 0.01
    assert result(decided, "loss_text", "better_than_base").holds is False
    assert result(decided, "exact_match_sql", "better_than_constants").holds is True


def test_a_wrecked_base_is_refused(tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(0.5, nats=9.0), base=predictions(0.8, nats=2.0))
    assert not decided.promote
    assert "the loss is larger than chance" in result(decided, "exact_match_sql", "better_than_base").reason


def test_the_constant_that_uses_the_type_is_shown_but_need_not_be_beaten(tmp_path: Path) -> None:
    """A model of which the 16 rows with nothing missing are wrong, which TYPE gives away."""
    model = [Prediction(row.completion or "made_up", True, 2.0, 2) if i < 50 else Prediction("x", True, 2.0, 2, 1.0)
             for i, row in enumerate(ROWS)]  # fmt: skip
    assert decision(tmp_path, model).promote
    by_type = ReportFolder(tmp_path).read()["others"]["most_frequent_by_type"]
    assert {"exact_match_sql", "edit_similarity"} <= set(by_type["differences"])


def test_one_constant_that_is_not_beaten_is_enough(tmp_path: Path) -> None:
    gate = GateConfig(rules=[GateRule(metric="exact_match_sql", rule="better_than_constants")])
    right = set([place for place, row in enumerate(ROWS) if row.completion][::3])
    third = [Prediction(row.completion if place in right else "made_up") for place, row in enumerate(ROWS)]
    found = decision(tmp_path, third, gate=gate, most_frequent="column_3").results[0]
    assert found.holds is False
    assert "(empty completion)" in found.reason
    assert "(most frequent completion)" not in found.reason
    assert set(found.differences) == {"empty", "most_frequent"}
    both = decision(tmp_path, predictions(0.1), gate=gate, most_frequent="").results[0]
    assert both.holds is False
    assert "(empty completion)" not in both.reason, "the same goes for both"


def test_a_base_that_cannot_be_loaded_fails_its_rule_with_the_reason(tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(0.9), base=None, unavailable={"base": "There is no model folder /gone."})
    assert not decided.promote
    refused = result(decided, "exact_match_sql", "better_than_base")
    assert refused.holds is False
    assert "There is no model folder /gone" in refused.reason
    assert result(decided, "exact_match_sql", "better_than_constants").holds is True


def test_rules_without_figures_are_not_applicable(tmp_path: Path) -> None:
    """A base that never abstains has no precision at it; a base with an infinite loss has none either."""
    rules = [GateRule(metric=metric, rule="better_than_base") for metric in ("abstention_precision", "loss")]
    never = [Prediction("made_up", True, math.inf, 2)] * len(ROWS)
    decided = decision(tmp_path, predictions(0.9), gate=GateConfig(rules=rules), base=never)
    assert [found.holds for found in decided.results] == [None, None, False]
    assert decided.results[-1].rule == "any"
    reverse = decision(tmp_path, never, gate=GateConfig(rules=rules), base=predictions(0.9))
    assert [found.holds for found in reverse.results] == [False, False]


def test_a_gain_in_few_groups_can_be_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [replace(row, group=f"g{place % 5}") for place, row in enumerate(ROWS)]
    monkeypatch.setattr("tests.fim_core.champion.test_gate.ROWS", few)
    decided = decision(tmp_path, predictions(1.0))
    assert not decided.promote
    assert "so few groups cannot tell" in result(decided, "exact_match_sql", "better_than_base").reason
    assert decided.power["at_least"] is None


def test_reasons_state_figures_interval_and_verdict(tmp_path: Path) -> None:
    gate = GateConfig(rules=[GateRule(metric="exact_match_sql", rule="better_than_base")])
    base = [Prediction("made_up" if i % 2 else row.completion, True, 5.0, 2, 1.0) for i, row in enumerate(ROWS)]
    reason = decision(tmp_path, predictions(1.0), gate=gate, base=base).results[0].reason
    assert re.fullmatch(
        r"Exact match, SQL tokens: 100\.0%, base model 50\.0%: \+50\.0 points \(\+50\.0 to \+50\.0 with 95% confidence\), "
        r"on 80 rows in 40 groups\. Passed: the gain is larger than chance\.",
        reason,
    ), reason


def test_the_decision_states_its_power(tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(0.9))
    assert decided.power["smallest_gain"].keys() == {"base", "empty", "most_frequent"}
    assert not decided.power["enough"], "80 rows"
    unclear = decision(tmp_path, predictions(0.06), base=BASE).results[1]
    assert "Failed: a difference this small can be chance (on this many rows, the smallest gain" in unclear.reason


def test_the_first_candidate_needs_no_champion(tmp_path: Path) -> None:
    decided = decision(tmp_path, predictions(0.8))
    assert decided.promote
    assert {found.holds for found in decided.results if found.rule == "not_worse"} == {None}


def test_the_first_candidate_must_be_better_than_base_and_constants_whatever_the_gate(tmp_path: Path) -> None:
    gate = GateConfig(rules=[GateRule(metric="loss", rule="finite")])
    decided = decision(tmp_path, [Prediction("", True, 2.0, 2, 1.0)] * len(ROWS), gate=gate)
    assert not decided.promote
    assert [found.rule for found in decided.results[1:]] == ["better_than_base", "better_than_constants"]
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
        (GateRule(metric="loss", rule="finite"), True),
        (GateRule(metric="exact_match_sql", rule="better_than_base"), True),
        (GateRule(metric="loss", rule="better_than_base"), True),
        (GateRule(metric="runaway", rule="better_than_base"), False),
        (GateRule(metric="exact_match_sql", rule="better_than_constants"), True),
        (GateRule(metric="first_line_match", rule="better_than_constants"), True),
        (GateRule(metric="edit_similarity", rule="better_than_constants"), False),  # column_3 is much like column_4
        (GateRule(metric="bits_per_byte", rule="better_than_constants"), False),
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
    never = [Prediction("made_up", True, 2.0, 2, 1.0)] * len(ROWS)
    assert not decision(tmp_path, never, predictions(0.8), gate).promote
    beside = GateConfig(rules=[*gate.rules, GateRule(metric="loss", rule="finite")])
    assert decision(tmp_path, predictions(0.8), never, beside).promote, (
        "nothing to lose against a champion that never did"
    )


def test_the_default_gate_protects_precision_and_recall_of_abstention(tmp_path: Path) -> None:
    """Sixteen of eighty rows miss nothing: too few for the exact match of all to show what happens there."""
    right = predictions(1.0)

    def abstaining(wrong: set[int], text: str) -> list[Prediction]:
        return [Prediction(text, True, 2.0, 2, 1.0) if place in wrong else made for place, made in enumerate(right)]

    full = [place for place, row in enumerate(ROWS) if row.completion]
    empty = [place for place, row in enumerate(ROWS) if not row.completion]
    talks = decision(tmp_path, abstaining(set(empty[:10]), "made_up"), abstaining(set(full[:10]), "made_up"))
    assert result(talks, "exact_match_sql", "not_worse").holds
    assert result(talks, "abstention_recall", "not_worse").holds is False
    assert not talks.promote
    keeps_silent = decision(tmp_path, abstaining(set(full[:16]), ""), abstaining(set(full[:16]), "made_up"))
    assert result(keeps_silent, "abstention_precision", "not_worse").holds is False
    assert not keeps_silent.promote


def test_reports_that_rules_cannot_be_applied_to_are_clear_errors(tmp_path: Path) -> None:
    decision(tmp_path, predictions(0.8))
    with pytest.raises(FimError, match="champion"):
        decide(tmp_path, GateConfig(), has_champion=True)
    with pytest.raises(FimError, match="no evaluation report"):
        decide(tmp_path / "nowhere", GateConfig(), has_champion=False)


def test_rows_that_the_champion_cannot_read_are_not_compared(tmp_path: Path) -> None:
    """A worse candidate is not saved by them, and one that is as good on the others does not fail by them."""
    unread = [None] * 40
    champion = [*unread, *predictions(0.9, seed=1)[40:]]
    worse = [*(Prediction(row.completion, True, 2.0, 2, 1.0) for row in ROWS[:40]), *predictions(0.3)[40:]]
    refused = result(decision(tmp_path, worse, champion, NOT_WORSE), "exact_match_sql", "not_worse")
    assert refused.holds is False
    assert refused.differences["champion"]["n"] == refused.figures["champion"]["n"] == 40
    assert "cannot read 40 of the rows" in refused.reason
    equal = [Prediction("made_up", True, 2.0, 2, 1.0)] * 40 + predictions(0.9, seed=1)[40:]
    assert decision(tmp_path, equal, champion, NOT_WORSE).promote


@pytest.mark.parametrize(("right", "promote"), [(0.95, True), (0.0, False)])
def test_a_champion_that_reads_no_row_leaves_base_and_constants_to_beat(
    right: float, promote: bool, tmp_path: Path
) -> None:
    decided = decision(tmp_path, predictions(right), [None] * len(ROWS), NOT_WORSE)
    against_champion = result(decided, "exact_match_sql", "not_worse")
    assert against_champion.holds is None
    assert "the champion can read none of the rows" in against_champion.reason
    assert result(decided, "exact_match_sql", "better_than_base").holds is promote
    assert decided.promote is promote
