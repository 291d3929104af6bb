"""The .env file that `make` writes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from dotenv import dotenv_values

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["plain", 'it\'s #2 "q" & Söhne', "a [b] + 100% @c"])
def test_dagster_reads_the_home_of_a_copied_project(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .env that names another folder was copied with it; `make` rewrites it."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    folder = tmp_path / name
    folder.mkdir()
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, folder)
    (folder / ".env").write_text("DAGSTER_HOME=${DAGSTER_HOME:-/elsewhere/.dagster_home}\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    subprocess.run(["make", "-n", "lint"], cwd=folder, env=environment, capture_output=True, check=True)
    assert dotenv_values(folder / ".env") == {"DAGSTER_HOME": str(folder / ".dagster_home")}
    monkeypatch.setenv("DAGSTER_HOME", "/mine")
    assert dotenv_values(folder / ".env") == {"DAGSTER_HOME": "/mine"}
