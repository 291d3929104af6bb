"""Finds the checks of an asset and runs them.

Most checks are SQL files, `<asset>/<name>.sql` beside this module: adding a check is adding a file. Those that SQL
cannot express are Python functions with the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fim_core.config.workflow import CheckOverride
from fim_core.quality import checkpoint, gate, near_duplicates, report
from fim_core.quality.result import Check, CheckResult, Evidence
from fim_core.quality.sql_check import read_check
from fim_core.quality.tables import open_tables

_FOLDER = Path(__file__).parent
_PYTHON_CHECKS = (near_duplicates.NEAR_DUPLICATES, *checkpoint.CHECKS, *report.CHECKS, *gate.CHECKS)


@cache
def load_checks(asset: str) -> Sequence[Check]:
    """The checks of an asset, sorted by name; none for an asset without any."""
    checks = [read_check(path) for path in (_FOLDER / asset).glob("*.sql")]
    checks += [check for check in _PYTHON_CHECKS if check.asset == asset]
    return tuple(sorted(checks, key=lambda check: check.name))


def known_checks() -> dict[str, str]:
    """The asset of each check, by the check's name."""
    assets = {path.parent.name for path in _FOLDER.glob("*/*.sql")} | {check.asset for check in _PYTHON_CHECKS}
    return {check.name: check.asset for asset in sorted(assets) for check in load_checks(asset)}


def run_checks(
    asset: str,
    tables: Mapping[str, Path],
    parameters: Mapping[str, Any],
    overrides: Mapping[str, CheckOverride],
) -> list[CheckResult]:
    """Run the checks of an asset.

    Args:
        asset: whose checks.
        tables: Parquet files, saved datasets or, for the Python checks, folders and JSON files, by the names that the
            checks use.
        parameters: values that the checks use, by name.
        overrides: changes by check name, for any asset.

    Returns:
        One result for each check, by name. A check that is switched off has passed, with a note that says so.

    Raises:
        FimError: a table does not exist.
    """
    has_rows = any((_FOLDER / asset).glob("*.sql"))
    with open_tables(tables if has_rows else {}) as connection:
        evidence = Evidence(tables, parameters, connection)
        return [_run(check, evidence, overrides.get(check.name, CheckOverride())) for check in load_checks(asset)]


def _run(check: Check, evidence: Evidence, override: CheckOverride) -> CheckResult:
    # Limits that an experiment gives replace the check's own limits of both kinds.
    own = override.max_rows is None and override.max_share is None
    max_rows, max_share = (check.max_rows, check.max_share) if own else (override.max_rows, override.max_share)
    if override.severity == "off":
        note = "Switched off by the experiment."
        return CheckResult(check.name, check.description, "warn", True, 0, 0, [], max_rows, max_share, note)
    try:
        found = check.find(evidence)
    except Exception as error:
        error.add_note(f"in the check {check.name} of {check.asset}")
        raise
    within_rows = max_rows is None or found.rows <= max_rows
    within_share = max_share is None or found.rows <= max_share * found.total
    return CheckResult(
        name=check.name,
        description=check.description,
        severity=override.severity or check.severity,
        passed=within_rows and within_share,
        rows=found.rows,
        total=found.total,
        row_ids=list(found.row_ids),
        max_rows=max_rows,
        max_share=max_share,
        note=found.note,
        breakdown=[dict(row) for row in found.breakdown],
    )
