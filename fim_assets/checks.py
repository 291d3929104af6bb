"""Data-quality checks as Dagster asset checks."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from fim_core.pipeline.checks import blocking_failures
from fim_core.quality.run import CheckResult, load_checks

_SEVERITY = {"error": dg.AssetCheckSeverity.ERROR, "warn": dg.AssetCheckSeverity.WARN}


def check_specs(key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Specifications of an asset's checks, for its definition. The last part of its key is the stage's name for it.

    Checks of severity error block downstream assets, and Dagster shows them as blocking. For a warning that an experiment
    raises to an error, see `not_blocked_by_dagster`.
    """
    return [
        dg.AssetCheckSpec(name=check.name, asset=key, description=check.description, blocking=check.severity == "error")
        for check in load_checks(key.path[-1])
    ]


def not_blocked_by_dagster(key: dg.AssetKey, results: Sequence[CheckResult]) -> list[CheckResult]:
    """Failed checks that must block downstream assets although their specification does not declare them as blocking."""
    declared = {spec.name for spec in check_specs(key) if spec.blocking}
    return [result for result in blocking_failures(results) if result.name not in declared]


def check_results(key: dg.AssetKey, results: Sequence[CheckResult]) -> list[dg.AssetCheckResult]:
    """Check results for Dagster, with counts, shares, thresholds and a few row_ids."""
    return [
        dg.AssetCheckResult(
            asset_key=key,
            check_name=result.name,
            passed=result.passed,
            severity=_SEVERITY[result.severity],
            description=result.sentence,
            metadata=_metadata(result),
        )
        for result in results
    ]


def _metadata(result: CheckResult) -> dict[str, dg.MetadataValue]:
    shown: dict[str, dg.MetadataValue] = {
        "failing_rows": dg.MetadataValue.int(result.rows),
        "checked_rows": dg.MetadataValue.int(result.total),
        "failing_share": dg.MetadataValue.float(result.share),
        "threshold": dg.MetadataValue.text(result.threshold),
    }
    if result.row_ids:
        shown["row_ids"] = dg.MetadataValue.json(list(result.row_ids))
    if result.breakdown:
        records = [dg.TableRecord(dict(row)) for row in result.breakdown]
        shown["breakdown"] = dg.MetadataValue.table(records)
    return shown
