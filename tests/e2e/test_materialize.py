"""`make demo` with a mistake in the experiment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dagster_home import ROOT
from tiny_pipeline import TINY, write_experiment


@pytest.mark.slow
def test_the_reason_of_the_failure_is_the_last_line(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, data={**TINY["data"], "template": "nosuch"})
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    finished = subprocess.run(
        [sys.executable, "-m", "fim_assets.materialize"],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(home), "FIM_EXPERIMENT": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1, finished.stderr
    last = finished.stderr.rstrip().splitlines()[-1]
    assert last == "fim: There is no template nosuch. Give `chat`, `plain` or the path of a template file."
