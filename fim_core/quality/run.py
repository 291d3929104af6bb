"""Finds the checks of an asset and runs them.

A check is a file in the folder of its asset: `<asset>/<name>.sql`, or `<asset>/<name>.py` with a `CHECK` for what SQL
cannot express. Adding a check is adding a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fim_core.quality.check import Check, CheckResult, Evidence, PythonCheck
from fim_core.quality.sql_check import read_check
from fim_core.quality.tables import open_tables

_FOLDER = Path(__file__).parent


@cache
def load_checks(asset: str) -> Sequence[Check]:
    """The checks of an asset, sorted by name; none for an asset without any."""
    checks = [read_check(path) for path in (_FOLDER / asset).glob("*.sql")]
    checks += [_python_check(asset, path.stem) for path in (_FOLDER / asset).glob("*.py") if path.stem != "__init__"]
    return tuple(sorted(checks, key=lambda check: check.name))


def known_checks() -> dict[str, str]:
    """The asset of each check, by the check's name."""
    return {check.name: asset for asset in _assets() for check in load_checks(asset)}


def check_modules() -> list[str]:
    """This module, and those that hold checks."""
    packages = [f"{__package__}.{asset}" for asset in _assets()]
    files = [path for asset in _assets() for path in sorted((_FOLDER / asset).glob("*.py"))]
    return [__name__, *packages, *(_module(path.parent.name, path.stem) for path in files if path.stem != "__init__")]


def _assets() -> list[str]:
    return sorted(path.name for path in _FOLDER.iterdir() if (path / "__init__.py").is_file())


def _module(asset: str, name: str) -> str:
    return f"{__package__}.{asset}.{name}"


def _python_check(asset: str, name: str) -> Check:
    check: PythonCheck = import_module(_module(asset, name)).CHECK
    return Check(asset, name, check.description, check.severity, check.max_rows, check.max_share, check.find)


def run_checks(
    asset: str,
    tables: Mapping[str, Path],
    facts: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]],
) -> list[CheckResult]:
    """Run the checks of an asset.

    Args:
        asset: whose checks.
        tables: Parquet files, saved datasets or, for the Python checks, folders and JSON files, by the names that the
            checks use.
        facts: what else is known (see `Evidence`).
        overrides: changes by check name, for any asset: `severity`, which may be `off`, `max_rows`, `max_share`.

    Returns:
        One result for each check, by name. A check that is switched off has passed, with a note that says so.

    Raises:
        FimError: a table does not exist.
    """
    has_rows = any((_FOLDER / asset).glob("*.sql"))
    with open_tables(tables if has_rows else {}) as connection:
        evidence = Evidence(tables, {**facts, "tables": {name: str(path) for name, path in tables.items()}}, connection)
        return [_run(check, evidence, overrides.get(check.name, {})) for check in load_checks(asset)]


def _run(check: Check, evidence: Evidence, override: Mapping[str, Any]) -> CheckResult:
    max_rows, max_share = override.get("max_rows"), override.get("max_share")
    # Limits that an experiment gives replace the check's own limits of both kinds.
    if max_rows is None and max_share is None:
        max_rows, max_share = check.max_rows, check.max_share
    severity = override.get("severity")
    if severity == "off":
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
        severity=severity or check.severity,
        passed=within_rows and within_share,
        rows=found.rows,
        total=found.total,
        row_ids=list(found.row_ids),
        max_rows=max_rows,
        max_share=max_share,
        note=found.note,
        breakdown=[dict(row) for row in found.breakdown],
    )
