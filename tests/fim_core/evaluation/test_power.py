"""The smallest detectable gain, by formula and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from fim_core.evaluation.aggregate import Bootstrap, differences
from fim_core.evaluation.power import detectable_gain, detectable_share, fewest_groups, power_of

CONFIDENCE = 0.95


def share_that_passes(gain: float, loss: float, groups: int, rows_per_group: int, *, trials: int = 300) -> float:
    """How often the interval lies wholly above 0, of evaluations in which rows gain and lose independently."""
    rng = np.random.default_rng(11)
    members = np.repeat(np.arange(groups), rows_per_group)
    passed = 0
    for trial in range(trials):
        drawn = rng.random(len(members))
        ours, theirs = (drawn < gain).astype(float), ((drawn >= gain) & (drawn < gain + loss)).astype(float)
        bootstrap = Bootstrap(400, CONFIDENCE, trial)
        found = differences({"exact_match": ours}, {"exact_match": theirs}, members, bootstrap)["exact_match"]
        passed += found.low is not None and found.low > 0
    return passed / trials


def test_the_formula_by_hand() -> None:
    assert detectable_gain(0.02, 0.95) == pytest.approx((1.959964 + 0.841621) * 0.02, rel=1e-5)
    assert detectable_gain(0.0, 0.95) == 0.0


def test_a_gain_of_the_stated_size_passes_in_four_of_five_evaluations() -> None:
    """120 rows, of which a tenth changes either way: the standard error follows from that."""
    rows, changed = 120, 0.2
    gain = 0.1
    for _ in range(20):  # the error depends on the gain itself
        gain = detectable_gain(float(np.sqrt((changed - gain**2) / rows)), CONFIDENCE)
    assert share_that_passes((changed + gain) / 2, (changed - gain) / 2, rows, 1) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(("groups", "rows_per_group"), [(60, 1), (30, 4)])
def test_the_smallest_gain_without_loss_passes_in_four_of_five_evaluations(groups: int, rows_per_group: int) -> None:
    gain = detectable_share(groups * rows_per_group, groups, CONFIDENCE)
    assert gain is not None
    assert share_that_passes(gain, 0.0, groups, rows_per_group) == pytest.approx(0.8, abs=0.07)


def test_equal_predictors_have_the_exact_bound_and_more_rows_lower_it() -> None:
    same = {"exact_match": np.zeros(40)}
    found = differences(same, same, np.arange(40), Bootstrap(200, CONFIDENCE, 0))["exact_match"]
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert found.detectable == detectable_share(40, 40, CONFIDENCE)
    bounds = [detectable_share(n, n, CONFIDENCE) or 1 for n in (10, 40, 160, 640)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.01


def test_too_few_groups_detect_nothing() -> None:
    """Five groups that all gain are one outcome of 32 that chance gives."""
    assert fewest_groups(0.95) == 6
    assert detectable_share(500, 5, 0.95) is None
    ours, theirs = {"exact_match": np.ones(50)}, {"exact_match": np.arange(50) % 2.0}
    groups = np.arange(50) // 10
    assert differences(ours, theirs, groups, Bootstrap(200, 0.95, 0))["exact_match"].detectable is None


def others(**detectable: float | None) -> dict:
    return {name: {"differences": {"exact_match_sql": {"detectable": gain}}} for name, gain in detectable.items()}


def test_a_report_states_its_power_and_how_to_raise_it() -> None:
    counts = {"evaluated": 240, "held_out": 900, "groups": 31}
    weak = power_of(others(base=0.09, empty=0.04, most_frequent_by_type=0.2), counts)
    assert (weak["at_least"], weak["enough"]) == (0.09, False)
    assert set(weak["smallest_gain"]) == {"base", "empty"}, "nothing is asked against what knows the TYPE"
    assert "240 rows in 31 groups" in weak["sentence"]
    assert "9.0 points" in weak["sentence"]
    assert "evaluation.max_rows" in weak["sentence"]
    all_rows = power_of(others(base=0.09), counts | {"evaluated": 900})
    assert "data.eval_fraction" in all_rows["sentence"]
    strong = power_of(others(base=0.03, champion=0.01), counts)
    assert strong["enough"]
    assert "raise" not in strong["sentence"]
    nothing = power_of(others(base=None, empty=0.01), counts)
    assert (nothing["at_least"], nothing["enough"]) == (None, False)
    assert "no gain" in nothing["sentence"]
    unmeasured = power_of({"base": {"differences": {}}, "empty": {"differences": {}}}, counts)
    assert not unmeasured["enough"]
    assert "Exact match, SQL tokens applies to none of the held-out rows" in unmeasured["sentence"]
    assert "raise" not in unmeasured["sentence"]
