"""Messages of `fim_assets.materialize` about a failed run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from fim_assets.checks import check_results, check_specs
from fim_assets.materialize import failures
from fim_core.quality.run import CheckResult, load_checks

KEY = dg.AssetKey("fim_prompts")


@dg.asset(check_specs=check_specs(KEY))
def fim_prompts() -> Iterator[dg.MaterializeResult]:
    """Every check passes except one blocking check."""
    results = [
        CheckResult(
            name=check.name,
            description=check.description,
            severity=check.severity,
            passed=check.name != "rejected_share",
            rows=600 if check.name == "rejected_share" else 0,
            total=700,
            row_ids=[],
            max_rows=check.max_rows,
            max_share=check.max_share,
        )
        for check in load_checks("fim_prompts")
    ]
    yield dg.MaterializeResult(check_results=check_results(KEY, results))


@dg.asset
def broken() -> None:
    raise ValueError("of another kind")


def test_a_blocking_check_is_reported_with_its_counts() -> None:
    began = datetime.now(UTC)
    with dg.instance_for_test() as instance:
        assert not dg.materialize([fim_prompts], instance=instance, raise_on_error=False).success
        [said] = failures(instance, since=began)
        assert said.startswith("fim_prompts did not pass its checks: rejected_share: 600 of 700 (85.71%)")


def test_another_failure_is_reported_with_its_own_message() -> None:
    began = datetime.now(UTC)
    with dg.instance_for_test() as instance:
        assert not dg.materialize([broken], instance=instance, raise_on_error=False).success
        [said] = failures(instance, since=began)
        assert "of another kind" in said or "broken" in said
