"""A new launcher: the class of its options and the function that starts its ranks, in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from fim_core.config import Experiment, load_experiment
from fim_core.config.experiment import register_launcher_options
from fim_core.config.launchers import LAUNCHER_TYPES, LauncherSection
from fim_core.errors import FimError
from fim_core.launchers import base
from fim_core.launchers.launch import prepare_job
from fim_core.training.job import Job


class MadeUpLauncher(LauncherSection):
    """`type: made_up`: ranks in a queue."""

    type: Literal["made_up"]
    queue: str


@dataclass
class QueuedRanks:
    """Ranks that have ended well; they remember how they were started."""

    queue: str
    ranks: int | None
    lock: int
    labels: Mapping[str, str]
    running: bool = False

    def check(self) -> None: ...

    def failure(self) -> FimError | None:
        return None

    def end(self) -> None: ...


def start_made_up(job: Job, lock: int, labels: Mapping[str, str]) -> QueuedRanks:
    options = job.experiment.launcher
    assert isinstance(options, MadeUpLauncher)
    return QueuedRanks(options.queue, options.num_processes, lock, labels)


@pytest.fixture
def registered() -> Iterator[None]:
    register_launcher_options(MadeUpLauncher)
    base.register("made_up")(start_made_up)
    yield
    unregister()


def unregister() -> None:
    LAUNCHER_TYPES.pop("made_up", None)
    base._LAUNCHERS.pop("made_up", None)
    Experiment.model_rebuild(force=True)


def experiment_file(folder: Path, launcher: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(f"model: {{name_or_path: m}}\ndata: {{sources: [rows.csv]}}\nlauncher: {launcher}\n")
    return path


@pytest.mark.usefixtures("registered")
def test_an_experiment_chooses_it_and_gets_its_ranks(tmp_path: Path) -> None:
    experiment = load_experiment(experiment_file(tmp_path, "{type: made_up, queue: night, num_processes: 3}"))
    job = prepare_job(experiment, tmp_path, tmp_path, tmp_path / "work")
    assert base.start_ranks(job, 7, {"run": "r-1"}) == QueuedRanks("night", 3, 7, {"run": "r-1"})


@pytest.mark.usefixtures("registered")
def test_a_rank_reads_its_job_without_the_module_of_the_launcher(tmp_path: Path) -> None:
    options = "{type: made_up, queue: night, num_processes: 3, timeout_minutes: 5, heartbeat_timeout_minutes: 2}"
    job = prepare_job(load_experiment(experiment_file(tmp_path, options)), tmp_path, tmp_path, tmp_path / "work")
    unregister()
    launcher = Job.read(job.work.job).experiment.launcher
    assert (launcher.num_processes, launcher.timeout_minutes, launcher.heartbeat_timeout_minutes) == (3, 5, 2)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("{type: made_up}", r"launcher\.made_up\.queue: missing"),
        ("{type: made_up, queue: night, hostfile: hosts}", r"launcher\.made_up\.hostfile: no such option here"),
        ("{type: made_up, queue: night, queu: day}", r"launcher\.made_up\.queu: no such option; did you mean queue\?"),
        ("{type: madeup, queue: night}", "`type` is one of: local, hostfile, ray, kubernetes, made_up"),
    ],
)
def test_its_options_are_checked(launcher: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(FimError, match=message):
        load_experiment(experiment_file(tmp_path, launcher))


def test_it_is_refused_where_it_is_not_registered(tmp_path: Path) -> None:
    with pytest.raises(FimError, match=r"`type` is one of: local, hostfile, ray, kubernetes$"):
        load_experiment(experiment_file(tmp_path, "{type: made_up, queue: night}"))
