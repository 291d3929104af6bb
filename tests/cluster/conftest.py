"""The cluster of the session, the runs on it, and the table of what each launcher does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hosts import Cluster, why_not
from table import Table
from trainings import Trainings

TABLE = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and three workers."""
    if (reason := why_not()) is not None:
        pytest.skip(f"no cluster on this machine: {reason}")
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def all_trainings(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    """Runs with data that is prepared once."""
    return Trainings(cluster, tmp_path_factory.mktemp("trainings"))


@pytest.fixture
def trainings(all_trainings: Trainings) -> Iterator[Trainings]:
    """Runs, of which none is left at the end of a test."""
    yield all_trainings
    all_trainings.end()


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """The table that is printed at the end."""
    return request.config.stash.setdefault(TABLE, Table())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and write it to artifacts/cluster/table.md."""
    table = config.stash.get(TABLE, None)
    if table is None:
        return
    file = config.rootpath / "artifacts" / "cluster" / "table.md"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(table.text, encoding="utf-8")
    terminalreporter.section(f"launchers, {time.strftime('%Y-%m-%d')}; also in {file}")
    terminalreporter.write(table.text)
