"""Adding a check takes one file: it is found, and gets its parameters from the facts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fim_core.config import Experiment
from fim_core.quality import raw_completions
from fim_core.quality.check import CheckResult
from fim_core.quality.run import check_modules, known_checks, load_checks, run_checks

SQL = """\
-- description: No output is longer than the made-up limit.
-- severity: error
-- max_rows: 1
-- total: (SELECT count(*) FROM raw_completions WHERE length(output) > $ignored)
-- note: format('The limit is {}.', $most)
-- parameter: most = config.data.made_up_limit
-- parameter: ignored = counts.ignored_length
SELECT row_id FROM raw_completions WHERE length(output) > $most;

SELECT count(*) AS rows, $most AS most FROM raw_completions
"""

PYTHON = '''\
"""Outputs that end in the made-up mark."""

from fim_core.quality.check import Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    query = "SELECT row_id FROM raw_completions WHERE ends_with(output, $mark)"
    rows = evidence.connection.execute(query, {"mark": evidence.fact("config.data.made_up_mark")}).fetchall()
    return Finding(len(rows), 4, [row_id for (row_id,) in rows])


CHECK = PythonCheck("No output ends in the made-up mark.", "warn", find)
'''

FACTS = {"config": {"data": {"made_up_limit": 3, "made_up_mark": "!"}}, "counts": {"ignored_length": 0}}


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Add a file to the checks of raw_completions, in a temporary folder of that package."""
    folder = tmp_path / "raw_completions"
    folder.mkdir()
    monkeypatch.setattr(raw_completions, "__path__", [*raw_completions.__path__, str(folder)])
    load_checks.cache_clear()
    yield lambda name, text: (folder / name).write_text(text)
    load_checks.cache_clear()
    sys.modules.pop(f"{raw_completions.__name__}.made_up_mark", None)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Path]:
    outputs = ["", "ab", "abcd!", "abcde"]
    columns = {name: ["x"] * 4 for name in ("source", "source_type", "type", "input")}
    table = {"row_id": ["r0", "r1", "r2", "r3"], "output": outputs, "held_out": [False] * 4, **columns}
    pq.write_table(pa.table(table), tmp_path / "raw.parquet")
    return {"raw_completions": tmp_path / "raw.parquet"}


def run(raw: dict[str, Path], name: str, **override: object) -> CheckResult:
    results = run_checks("raw_completions", raw, FACTS, {name: override})
    return next(result for result in results if result.name == name)


def test_a_sql_file_is_found_and_gets_its_parameters(add: Callable[[str, str], None], raw: dict[str, Path]) -> None:
    add("made_up_limit.sql", SQL)
    assert known_checks()["made_up_limit"] == "raw_completions"
    result = run(raw, "made_up_limit")
    assert (result.rows, result.total, result.row_ids, result.passed) == (2, 3, ["r2", "r3"], False)
    assert (result.note, result.breakdown) == ("The limit is 3.", [{"rows": 4, "most": 3}])
    assert run(raw, "made_up_limit", max_rows=2).passed


def test_a_python_file_is_found_and_reads_facts(add: Callable[[str, str], None], raw: dict[str, Path]) -> None:
    before = check_modules()
    add("made_up_mark.py", PYTHON)
    assert set(check_modules()) - set(before) == {"fim_core.quality.raw_completions.made_up_mark"}
    result = run(raw, "made_up_mark")
    assert (result.severity, result.rows, result.row_ids, result.passed) == ("warn", 1, ["r2"], False)


def test_an_experiment_can_override_it(add: Callable[[str, str], None]) -> None:
    add("made_up_limit.sql", SQL)
    experiment = {
        "name": "n",
        "model": {"name_or_path": "m"},
        "data": {"sources": [{"type": "demo"}]},
        "checks": {"made_up_limit": {"severity": "off"}},
    }
    assert Experiment.model_validate(experiment).checks["made_up_limit"].severity == "off"


def test_a_parameter_without_its_fact_is_a_clear_error(add: Callable[[str, str], None], raw: dict[str, Path]) -> None:
    add("made_up_limit.sql", SQL)
    with pytest.raises(ValueError, match=r"no fact config\.data\.made_up_limit"):
        run_checks("raw_completions", raw, {"config": {"data": {}}, "counts": {"ignored_length": 0}}, {})
