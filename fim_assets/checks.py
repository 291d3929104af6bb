"""Data-quality checks as Dagster asset checks: one for each SQL file, and those that SQL cannot express."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from fim_core.pipeline import STAGES
from fim_core.quality.run import CheckResult, load_checks

_SEVERITY = {"error": dg.AssetCheckSeverity.ERROR, "warn": dg.AssetCheckSeverity.WARN}


def check_specs(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks of an asset, as its definition declares them.

    Where something comes after, all are declared blocking, since an experiment may raise a warning to an error; Dagster
    blocks only when a check fails with severity ERROR. A refused champion is a failed check, not a failed run.
    """
    has_downstream = any(asset in stage.upstream for stage in STAGES)
    return [
        dg.AssetCheckSpec(name=check.name, asset=asset, description=check.description, blocking=has_downstream)
        for check in load_checks(asset)
    ]


def check_results(asset: str, results: Sequence[CheckResult]) -> list[dg.AssetCheckResult]:
    """What the checks found, with counts, shares, thresholds and a few row_ids."""
    return [
        dg.AssetCheckResult(
            asset_key=asset,
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
        "rows": dg.MetadataValue.int(result.rows),
        "of": dg.MetadataValue.int(result.total),
        "share": dg.MetadataValue.float(result.share),
        "threshold": dg.MetadataValue.text(result.threshold),
    }
    if result.row_ids:
        shown["row_ids"] = dg.MetadataValue.json(list(result.row_ids))
    if result.breakdown:
        records = [dg.TableRecord(dict(row)) for row in result.breakdown]
        shown["breakdown"] = dg.MetadataValue.table(records)
    return shown
