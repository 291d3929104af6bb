"""Thresholds and overrides of checks, and headers of SQL files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fim_core.errors import FimError
from fim_core.quality.check import CheckResult, Evidence
from fim_core.quality.run import known_checks, load_checks, run_checks
from fim_core.quality.sql_check import read_check
from fim_core.quality.tables import open_tables


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Path]:
    """Ten rows of which three repeat an earlier one."""
    inputs = ["a", "a", "a", "b", "b", "c", "d", "e", "f", "g"]
    columns = {name: ["x"] * 10 for name in ("source", "source_type", "type", "output")}
    table = pa.table({"row_id": [f"r{n}" for n in range(10)], "input": inputs, "held_out": [False] * 10, **columns})
    # Brackets must not be taken for a pattern.
    path = tmp_path / "with [brackets] and 'quotes'" / "raw.parquet"
    path.parent.mkdir()
    pq.write_table(table, path)
    return {"raw_completions": path}


def duplicates(raw: dict[str, Path], **override: object) -> CheckResult:
    overrides = {"exact_duplicates": override} if override else {}
    results = run_checks("raw_completions", raw, {}, overrides)
    return next(result for result in results if result.name == "exact_duplicates")


def test_own_threshold(raw: dict[str, Path]) -> None:
    result = duplicates(raw)
    assert (result.rows, result.total, result.share, result.row_ids) == (3, 10, 0.3, ["r1", "r2", "r4"])
    assert (result.severity, result.passed, result.threshold) == ("warn", False, "at most 5.00%")
    assert result.sentence == "exact_duplicates: 3 of 10 (30.00%); tolerated: at most 5.00%"


@pytest.mark.parametrize(
    ("override", "passed"),
    [
        ({"max_share": 0.3}, True),
        ({"max_share": 0.29}, False),
        ({"max_rows": 3}, True),
        ({"max_rows": 2}, False),
        ({"max_rows": 3, "max_share": 0.1}, False),
    ],
)
def test_limits_of_the_experiment_replace_its_own(raw: dict[str, Path], override: dict, passed: bool) -> None:
    assert duplicates(raw, **override).passed is passed


def test_severity_of_the_experiment(raw: dict[str, Path]) -> None:
    assert duplicates(raw, severity="error").severity == "error"
    off = duplicates(raw, severity="off")
    assert (off.passed, off.rows, off.note) == (True, 0, "Switched off by the experiment.")


def test_names_are_unique_and_each_asset_has_checks() -> None:
    assets = set(known_checks().values())
    assert assets >= {"raw_completions", "fim_prompts", "tokenized_dataset", "trained_checkpoint", "evaluation_report"}
    names = [check.name for asset in assets for check in load_checks(asset)]
    assert len(names) == len(set(names))
    assert known_checks() == {check.name: asset for asset in assets for check in load_checks(asset)}
    assert load_checks("no_such_asset") == ()


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="There is no table raw_completions at"):
        run_checks("raw_completions", {"raw_completions": tmp_path / "none.parquet"}, {}, {})


def test_missing_parameter(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"row_id": ["a"], "prompt": ["b"], "is_completion": [True]}), path)
    (check,) = (check for check in load_checks("fim_prompts") if check.name == "ends_in_middle_token")
    with open_tables({"fim_prompts": path}) as connection:
        evidence = Evidence({"fim_prompts": path}, {}, connection)
        with pytest.raises(ValueError, match="recipe"):
            check.find(evidence)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("-- severity: warn\n", "needs a description"),
        ("-- description: a\n-- severity: fatal\n", "severity: error or warn"),
        ("-- description: a\n-- severity: warn\n-- max_row: 3\n", "no such key in the header: max_row"),
        ("-- description: a\n-- severity: warn\n-- parameter: b\n", "name = path.to.fact"),
    ],
)
def test_a_wrong_header_is_refused(head: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "check.sql").write_text(head + "SELECT 1")
    with pytest.raises(ValueError, match=message):
        read_check(tmp_path / "check.sql")


def test_header(tmp_path: Path) -> None:
    path = tmp_path / "some_asset" / "a_check.sql"
    path.parent.mkdir()
    path.write_text("-- description: One line,\n--   and one more.\n-- severity: error\nSELECT 1 AS row_id")
    check = read_check(path)
    assert (check.asset, check.name, check.description) == ("some_asset", "a_check", "One line, and one more.")
    assert (check.severity, check.max_rows, check.max_share) == ("error", 0, None)


def test_checks_load_without_heavy_libraries() -> None:
    code = (
        "import sys; from fim_core.quality.run import load_checks; load_checks('fim_prompts');"
        "print([m for m in ('torch', 'transformers', 'datasets', 'scipy', 'dagster', 'pandas') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
