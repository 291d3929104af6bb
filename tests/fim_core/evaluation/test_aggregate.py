"""Figures and intervals, by hand and against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fim_core.evaluation.aggregate import Bootstrap, differences, estimates, length_bucket, subset
from fim_core.metrics.registry import METRICS, measures

NAN = math.nan
BOOTSTRAP = Bootstrap(samples=400, confidence=0.95, seed=3)


def test_figures_by_hand() -> None:
    columns = {
        "exact_match": np.array([1.0, 0, 0, 1]),
        "binds": np.array([1.0, NAN, 0, NAN]),
        "prefix_match_chars": np.array([4.0, 0, 2, 6]),
        "gold_chars": np.array([4.0, 0, 10, 6]),
        "identifiers_matched": np.array([1.0, NAN, 2, 0]),
        "identifiers_predicted": np.array([2.0, NAN, 3, 0]),
        "identifiers_gold": np.array([1.0, NAN, 4, 1]),
        "gold_empty": np.array([0.0, 1, 1, 0]),
        "predicted_empty": np.array([1.0, 1, 0, 0]),
        "both_empty": np.array([0.0, 1, 0, 0]),
        "loss_nats": np.array([2.0, 1, 3, 6]),
        "loss_tokens": np.array([1.0, 1, 2, 2]),
        "loss_bits": np.array([2.0, 1, 3, 6]) / math.log(2),
        "gold_bytes": np.array([4.0, 0, 10, 6]),
    }
    found = estimates(columns, np.array(["a", "a", "b", "c"]), BOOTSTRAP)
    expected = {
        "exact_match": (2 / 4, 4),
        "binds": (1 / 2, 2),
        "prefix_match_chars": (12 / 4, 4),
        "prefix_match_share": (12 / 20, 3),
        "identifier_precision": (3 / 5, 2),
        "identifier_recall": (3 / 6, 3),
        "abstention_precision": (1 / 2, 2),
        "abstention_recall": (1 / 2, 2),
        "loss": (12 / 6, 4),
        "bits_per_byte": (12 / math.log(2) / 20, 3),
    }
    assert {name: (estimate.value, estimate.n) for name, estimate in found.items()} == {
        name: (pytest.approx(value), n) for name, (value, n) in expected.items()
    }


def test_a_metric_that_applies_to_no_row_has_no_figure() -> None:
    assert "binds" not in estimates({"binds": np.full(3, NAN)}, np.arange(3), BOOTSTRAP)
    assert estimates({"exact_match": np.empty(0)}, np.empty(0), BOOTSTRAP) == {}


def test_an_infinite_loss_has_a_figure_without_value() -> None:
    found = estimates({"loss_nats": np.array([1.0, math.inf]), "loss_tokens": np.ones(2)}, np.arange(2), BOOTSTRAP)
    assert (found["loss"].value, found["loss"].low, found["loss"].n) == (None, None, 2)


def slow_interval(
    values: np.ndarray, groups: np.ndarray, samples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Draw groups with replacement one by one and take the mean over all their rows."""
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    means = []
    for _ in range(samples):
        rows = [
            value for name in rng.choice(names, len(names)) for value in values[groups == name] if not math.isnan(value)
        ]
        means.append(sum(rows) / len(rows))
    return tuple(np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]))


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_agree_with_a_slow_cluster_bootstrap(confidence: float) -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 25, 160)
    values = (rng.random(160) < 0.2 + 0.5 * (groups % 2)).astype(float)
    values[::17] = NAN
    found = estimates({"exact_match": values}, groups, Bootstrap(4000, confidence, 1))["exact_match"]
    low, high = slow_interval(values, groups, 4000, confidence, 2)
    assert found.low == pytest.approx(low, abs=0.012)
    assert found.high == pytest.approx(high, abs=0.012)


def test_rows_of_one_group_count_as_one_observation() -> None:
    values = np.repeat(np.arange(10) % 2, 50).astype(float)
    clustered = estimates({"exact_match": values}, np.repeat(np.arange(10), 50), BOOTSTRAP)["exact_match"]
    independent = estimates({"exact_match": values}, np.arange(500), BOOTSTRAP)["exact_match"]
    assert clustered.high - clustered.low > 4 * (independent.high - independent.low)


def test_chunks_do_not_change_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"exact_match": (np.arange(30) % 3 == 0).astype(float)}
    whole = estimates(columns, np.arange(30), BOOTSTRAP)
    monkeypatch.setattr("fim_core.evaluation.aggregate._CELLS_AT_ONCE", 70)
    assert estimates(columns, np.arange(30), BOOTSTRAP) == whole


def test_shares_of_all_or_none_have_exact_binomial_bounds() -> None:
    """Of n groups none succeeds with probability (1 - p)^n, which is half of 5% at the upper bound."""
    none = estimates({"exact_match": np.zeros(40)}, np.arange(40), BOOTSTRAP)["exact_match"]
    assert (none.low, (1 - none.high) ** 40) == (0.0, pytest.approx(0.025))
    every = estimates({"exact_match": np.ones(40)}, np.arange(40) // 2, BOOTSTRAP)["exact_match"]
    assert (every.high, every.low**20) == (1.0, pytest.approx(0.025))


def test_a_single_group_gives_the_widest_interval() -> None:
    half, quarter = ({"binds": np.array([1.0, second, 0, 0, NAN])} for second in (1.0, 0.0))
    groups = np.array(["a", "a", "a", "a", "b"])
    found = estimates(half, groups, BOOTSTRAP)["binds"]
    assert (found.value, found.low, found.high, found.n) == (0.5, 0.0, 1.0, 4)
    difference = differences(half, quarter, groups, BOOTSTRAP)["binds"]
    assert (difference.value, difference.low, difference.high) == (0.25, -1.0, 1.0)


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(5)
    groups = np.arange(300)
    hard = (rng.random(300) < 0.5).astype(float)
    ours, theirs = hard.copy(), hard.copy()
    ours[:24] = 1.0
    theirs[:24] = 0.0
    found = differences({"exact_match": ours}, {"exact_match": theirs}, groups, BOOTSTRAP)["exact_match"]
    assert found.value == pytest.approx(24 / 300)
    # Rows on which both agree add nothing: the interval is that of 24 differences among 300.
    assert found.low == pytest.approx(0.08 - 1.96 * math.sqrt(0.08 * 0.92 / 300), abs=0.012)
    same = differences({"exact_match": ours}, {"exact_match": ours}, groups, BOOTSTRAP)["exact_match"]
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_differences_need_both_figures() -> None:
    ours, theirs = {"binds": np.array([1.0, NAN])}, {"binds": np.array([NAN, NAN])}
    assert differences(ours, theirs, np.arange(2), BOOTSTRAP) == {}


def test_unpaired_intervals_overlap_where_the_paired_difference_is_clear() -> None:
    """Half of the rows are hard for both; of the others, one model gets all and the other nine of ten."""
    hard = np.arange(200) % 2 == 0
    ours, theirs = (~hard).astype(float), (~hard & (np.arange(200) % 20 != 1)).astype(float)
    groups = np.arange(200)
    a, b = (estimates({"exact_match": scores}, groups, BOOTSTRAP)["exact_match"] for scores in (ours, theirs))
    assert (a.value, b.value) == (0.5, 0.45)
    assert a.low < b.high, "each by itself, they cannot be told apart"
    found = differences({"exact_match": ours}, {"exact_match": theirs}, groups, BOOTSTRAP)["exact_match"]
    assert found.low > 0.02
    assert (found.n, found.groups) == (200, 200)


def test_differences_and_detectable_gains_agree_with_a_slow_paired_bootstrap() -> None:
    rng = np.random.default_rng(8)
    groups = rng.integers(0, 30, 150)
    ours, theirs = (rng.random(150) < 0.6).astype(float), (rng.random(150) < 0.4).astype(float)
    found = differences({"exact_match": ours}, {"exact_match": theirs}, groups, Bootstrap(4000, 0.95, 1))["exact_match"]
    names, drawn = sorted(set(groups)), []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(groups == name) for name in rng.choice(names, len(names))])
        drawn.append(ours[rows].mean() - theirs[rows].mean())
    assert [found.low, found.high] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])), abs=0.012)
    assert found.detectable == pytest.approx((1.95996 + 0.84162) * np.std(drawn), rel=0.05)


def test_the_detectable_gain_of_a_loss_depends_only_on_its_error() -> None:
    columns = {"loss_nats": np.arange(40.0), "loss_tokens": np.ones(40)}
    same = differences(columns, columns, np.arange(40), BOOTSTRAP)["loss"]
    assert (same.value, same.detectable) == (0.0, None)


def test_subset_and_buckets() -> None:
    assert subset({"x": np.arange(4)}, np.array([True, False, False, True]))["x"].tolist() == [0, 3]
    names = [length_bucket("x" * n) for n in (0, 1, 10, 11, 40, 41, 160, 161)]
    assert names == ["0 characters", "1–10", "1–10", "11–40", "11–40", "41–160", "41–160", "over 160"]


def test_names_of_metrics_and_columns_are_unique() -> None:
    assert [metric.name for metric in METRICS.values()] == list(METRICS)
    columns = [measure.name for measure in measures()]
    assert len(set(columns)) == len(columns)
