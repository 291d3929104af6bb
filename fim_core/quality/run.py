"""Discovery and execution of the checks of an asset.

A check is one file in the package of its asset: `<asset>/<name>.sql`, or `<asset>/<name>.py` with a constant `CHECK` for what
SQL cannot express. To add a check, add a file.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fim_core import quality
from fim_core.quality.check import Check, CheckResult, Evidence, PythonCheck
from fim_core.quality.sql_check import read_check
from fim_core.quality.tables import open_tables


@cache
def load_checks(asset: str) -> Sequence[Check]:
    """The checks of an asset, sorted by name; empty for an asset that has none."""
    checks = [
        read_check(path) if path.suffix == ".sql" else _python_check(asset, path.stem) for path in _check_files(asset)
    ]
    return tuple(sorted(checks, key=lambda check: check.name))


def known_checks() -> dict[str, str]:
    """The asset of each check, by the check's name."""
    return {check.name: asset for asset in _assets() for check in load_checks(asset)}


def check_modules() -> list[str]:
    """This module, and those that hold checks."""
    packages = [f"{__package__}.{asset}" for asset in _assets()]
    files = [(asset, path) for asset in _assets() for path in _check_files(asset) if path.suffix == ".py"]
    return [__name__, *packages, *(f"{__package__}.{asset}.{path.stem}" for asset, path in files)]


def _assets() -> list[str]:
    """The assets that have checks: one package each."""
    return sorted(found.name for found in pkgutil.iter_modules(quality.__path__) if found.ispkg)


def _check_files(asset: str) -> list[Path]:
    if asset not in _assets():
        return []
    folders = import_module(f"{__package__}.{asset}").__path__
    files = [path for folder in folders for path in Path(folder).iterdir() if path.suffix in (".sql", ".py")]
    return sorted(path for path in files if path.stem != "__init__")


def _python_check(asset: str, name: str) -> Check:
    check: PythonCheck = import_module(f"{__package__}.{asset}.{name}").CHECK
    return Check(asset, name, check.description, check.severity, check.max_rows, check.max_share, check.find)


def run_checks(
    asset: str,
    tables: Mapping[str, Path],
    facts: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]],
) -> list[CheckResult]:
    """Run the checks of an asset.

    Args:
        asset: name of the asset to check.
        tables: Parquet files, saved datasets or, for Python checks, folders and JSON files, by the names that the checks
            use.
        facts: see `Evidence`.
        overrides: changes by check name, for any asset: `severity` (also `off`), `max_rows`, `max_share`.

    Returns:
        One result per check, sorted by name. A check that is switched off passes, with a note that says so.

    Raises:
        FimError: a table does not exist.
    """
    has_rows = any(path.suffix == ".sql" for path in _check_files(asset))
    with open_tables(tables if has_rows else {}) as connection:
        evidence = Evidence(tables, {**facts, "tables": {name: str(path) for name, path in tables.items()}}, connection)
        return [_run(check, evidence, overrides.get(check.name, {})) for check in load_checks(asset)]


def _run(check: Check, evidence: Evidence, override: Mapping[str, Any]) -> CheckResult:
    max_rows, max_share = override.get("max_rows"), override.get("max_share")
    # A limit of the experiment replaces both limits of the check.
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
