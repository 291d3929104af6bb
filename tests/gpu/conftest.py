"""What the tests on a GPU share: the reason to skip them, the report, and rows of the demo."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu_rehearsal import REHEARSAL, sized
from gpu_report import Report
from gpu_runs import make_long_rows, make_rows

ROOT = Path(__file__).parents[2]
REPORT = Path(os.environ.get("FIM_ARTIFACTS", ROOT / "artifacts")) / "gpu" / "report.md"

LONG = sized(16_384, 600)
"""Tokens of a long row."""

_report = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first GPU."""
    if REHEARSAL:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "is built for CPUs" if torch.version.cuda is None else "sees no GPU"
        pytest.skip(f"no CUDA device: torch {torch.__version__} {built}")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def report(gpu: torch.device, request: pytest.FixtureRequest) -> Report:
    """The report of this run, printed at its end."""
    del gpu
    return request.config.stash.setdefault(_report, Report(REPORT))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the report."""
    if (report := config.stash.get(_report, None)) is not None:
        terminalreporter.write_line(f"\n{report.text()}\nWritten to {REPORT}")


@pytest.fixture(scope="session")
def rows(gpu: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the demo, and their tokenizer."""
    del gpu
    return make_rows(tmp_path_factory.mktemp("rows"), rows=sized(1000, 200), vocabulary=sized(8192, 600))


@pytest.fixture(scope="session")
def long_rows(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows of 16,384 tokens."""
    return make_long_rows(rows, tmp_path_factory.mktemp("long") / "rows", length=LONG, rows=3)


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    """Leave no memory to the processes of the next test."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
