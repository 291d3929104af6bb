"""The completion filter: its fit, its thresholds, its file, and its honesty on labels without information."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fim_core.confidence.features import FEATURES, completion_features
from fim_core.confidence.filter import FILE, CompletionFilter
from fim_core.confidence.fit import FEWEST, CannotFit, _threshold_by_loss, _threshold_by_precision, fit_filter
from fim_core.confidence.risk_coverage import area_under_risk, precision_bounds, precisions
from fim_core.errors import FimError


def rows(number: int, seed: int, *, informative: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels and groups of completions; the labels depend on the features, or on nothing."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(number, len(FEATURES)))
    skill = features[:, 0] + 0.5 * features[:, 2] if informative else rng.normal(size=number)
    return features, skill + rng.logistic(size=number) / 4 > 0.3, rng.integers(number // 8, size=number)


def test_features_by_hand() -> None:
    found = completion_features([-1.0, -3.0], parses=None, binds=0.0)
    assert dict(zip(FEATURES, found, strict=True)) == {"logprob": -4, "parses": 0, "binds": 0, "does_not_bind": 1}


def test_the_filter_equals_the_regression_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, correct, groups = rows(300, 1, informative=True)
    features = features * 7 + 3
    found = fit_filter(features, correct, groups, dialect="duckdb", lose_accepted=0.1)
    scaled = StandardScaler().fit_transform(features)
    expected = LogisticRegression(max_iter=1000).fit(scaled, correct).predict_proba(scaled)[:, 1]
    np.testing.assert_allclose(found.confidence(features), expected, atol=1e-9)


@pytest.mark.parametrize("wanted", [0.02, 0.05, 0.2])
def test_new_rows_lose_the_wanted_share_on_average(wanted: float) -> None:
    lost = []
    for seed in range(60):
        features, correct, groups = rows(240, seed, informative=True)
        found = fit_filter(features, correct, groups, dialect="duckdb", lose_accepted=wanted)
        features, correct, _ = rows(2000, 1000 + seed, informative=True)
        lost.append((found.confidence(features[correct]) < found.threshold).mean())
    # The standard error of the mean over 60 fits of about 100 correct rows each is below 0.005.
    assert np.mean(lost) <= wanted + 0.012


def test_shuffled_labels_gain_nothing() -> None:
    gains = []
    for seed in range(40):
        features, correct, groups = rows(400, seed, informative=False)
        found = fit_filter(features, correct, groups, dialect="duckdb", lose_accepted=0.2)
        features, correct, _ = rows(4000, 1000 + seed, informative=False)
        shown = found.confidence(features) >= found.threshold
        gains.append(correct[shown].mean() - correct.mean())
    assert abs(np.mean(gains)) < 0.005
    features, correct, groups = rows(400, 3, informative=True)
    shown = found.confidence(features) >= found.threshold
    useful = fit_filter(features, correct, groups, dialect="duckdb", lose_accepted=0.2)
    assert correct[useful.confidence(features) >= useful.threshold].mean() > correct.mean() + 0.1


@given(st.lists(st.integers(0, 9), min_size=1, max_size=120), st.integers(1, 50))
def test_the_threshold_by_loss_is_the_largest_within_the_bound(values: list[int], percent: int) -> None:
    confidences, share = np.array(values, float), percent / 100
    allowed = [t for t in confidences if 100 * ((confidences < t).sum() + 1) <= percent * (len(values) + 1)]
    if not allowed:
        with pytest.raises(CannotFit, match="too few"):
            _threshold_by_loss(confidences, share)
    else:
        assert _threshold_by_loss(confidences, share) == max(allowed)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=90), st.floats(0.1, 0.9))
def test_the_threshold_by_precision_is_the_smallest_that_reaches_it(
    drawn: list[tuple[int, bool]], wanted: float
) -> None:
    confidences, correct = np.array([c for c, _ in drawn], float), np.array([right for _, right in drawn])
    shown = {t: confidences >= t for t in confidences}
    reaching = [t for t, rows in shown.items() if correct[rows].sum() / (rows.sum() + 1) >= wanted]
    if not reaching or (confidences >= min(reaching)).sum() < FEWEST:
        with pytest.raises(CannotFit, match="no threshold"):
            _threshold_by_precision(confidences, correct, wanted)
    else:
        assert _threshold_by_precision(confidences, correct, wanted) == min(reaching)


@pytest.mark.parametrize(("right", "groups", "reason"), [(5, 40, "at least 20 correct"), (60, 1, "one group")])
def test_too_few_rows_are_a_reason(right: int, groups: int, reason: str) -> None:
    features, correct = np.zeros((120, len(FEATURES))), np.arange(120) < right
    with pytest.raises(CannotFit, match=reason):
        fit_filter(features, correct, np.arange(120) % groups, dialect="duckdb", lose_accepted=0.05)


def test_the_file_holds_the_filter(tmp_path) -> None:
    assert CompletionFilter.read(tmp_path) is None
    found = fit_filter(*rows(200, 1, informative=True), dialect="snowflake", precision=0.6)
    found.write(tmp_path)
    assert CompletionFilter.read(tmp_path) == found
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(text.replace("does_not_bind", "another"))
    with pytest.raises(FimError, match="another version"):
        CompletionFilter.read(tmp_path)
    (tmp_path / FILE).write_text(text.replace(f'"threshold": {found.threshold}', '"threshold": NaN'))
    with pytest.raises(FimError, match="another version"):
        CompletionFilter.read(tmp_path)
    (tmp_path / FILE).write_text(text.replace('"bias"', '"biased"'))
    with pytest.raises(FimError, match="is damaged"):
        CompletionFilter.read(tmp_path)
    (tmp_path / FILE).write_text(text.replace('"snowflake"', '"snowflakes"'))
    with pytest.raises(FimError, match=rf"{FILE}: sqlglot has no dialect 'snowflakes'. Install"):
        CompletionFilter.read(tmp_path)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40))
def test_precisions_without_ties_are_those_of_the_most_confident(drawn: list[tuple[int, bool]]) -> None:
    correct = np.array([right for _, right in drawn])
    confidences = np.random.default_rng(len(drawn)).permutation(len(drawn)).astype(float)
    ranked = correct[np.argsort(-confidences)]
    coverages = np.arange(1, len(drawn) + 1) / len(drawn)
    expected = [ranked[: place + 1].mean() for place in range(len(drawn))]
    np.testing.assert_allclose(precisions(confidences, correct, coverages), expected)
    assert area_under_risk(confidences, correct) == pytest.approx(np.mean(1 - np.array(expected)))


def test_equal_confidences_have_no_skill() -> None:
    correct = np.array([1, 1, 0, 0, 0, 1, 0, 0], bool)
    np.testing.assert_allclose(precisions(np.zeros(8), correct), 3 / 8)
    assert area_under_risk(np.zeros(8), correct) == pytest.approx(5 / 8)


def test_bounds_resample_whole_groups() -> None:
    correct = np.repeat([True, False], 10)
    low, high = precision_bounds(np.zeros(20), correct, np.repeat(["a", "b"], 10), samples=200, level=0.95, seed=1)
    assert (low == 0).all()
    assert (high == 1).all()
