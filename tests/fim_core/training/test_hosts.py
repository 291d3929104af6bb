"""Ranks on several hosts, here all on this machine: agents are real, pdsh is a script that starts them here.

`tests/cluster` has the same on hosts of their own, with the real pdsh, Slurm and OpenMPI.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_launch import pids_in, wait_until_dead
from training_helpers import tiny_experiment

from fim_core.config.hostfile import Host, read_hostfile
from fim_core.errors import FimError
from fim_core.launchers import commands, hostfile, slurm
from fim_core.launchers.commands import forwarded_environment
from fim_core.launchers.host_records import ranks_of, read_hosts, write_hosts
from fim_core.launchers.launch import launch
from fim_core.launchers.openmpi import mpirun_command
from fim_core.launchers.pdsh import pdsh_commands
from fim_core.process_group import Successor
from fim_core.training.job import Job, TrainingFailed, Work

HOSTS = [Host("worker-1", 1), Host("worker-2", 1)]
PDSH = """
[ "$3" != far-away ] || { echo "ssh: connect to host far-away port 22: No route to host" >&2; exit 255; }
for command; do true; done
eval "$command"
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def add_program(folder: Path, name: str, text: str = "") -> None:
    (folder / name).write_text("#!/bin/sh\n" + text)
    (folder / name).chmod(0o755)


def hostfile_options(folder: Path, *hosts: str, **options: Any) -> dict[str, Any]:
    lines = hosts or ("worker-1 slots=1", "worker-2 slots=1")
    (folder / "hosts").write_text("# machines\n" + "".join(f"{line}\n" for line in lines))
    return {"launcher": {"type": "hostfile", "hostfile": str(folder / "hosts"), **options}}


@pytest.fixture
def light(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents on this machine, whose ranks do not import torch."""
    add_program(programs, "pdsh", PDSH)
    monkeypatch.setattr(commands, "AGENT", [str(Path(__file__).with_name("light_agent.py"))])


def start(folder: Path, *hosts: str, on_event: Any = None, **options: Any) -> Any:
    experiment = tiny_experiment(**hostfile_options(folder, *hosts, **options))
    return launch(experiment, folder, folder / "tokenizer", folder / "work", on_event=on_event)


@pytest.mark.usefixtures("light")
class TestLightAgents:
    def test_good_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("BEHAVIOUR", "ends well")
        events: list[dict[str, Any]] = []
        assert start(tmp_path, on_event=events.append).steps == 2
        assert [event["event"] for event in events] == ["start", "checkpoint"]
        assert sorted(capfd.readouterr().err.splitlines()) == ["[rank 0] rank 0 speaks", "[rank 1] rank 1 speaks"]
        wait_until_dead(pids_in(tmp_path / "work"))
        assert [path.name for path in (tmp_path / "work" / "hosts").iterdir() if "lock" not in path.name] == []

    @pytest.mark.parametrize(
        ("behaviour", "kind", "message"),
        [
            ("killed", TrainingFailed, r"Rank 1 on worker-2 was ended by SIGKILL\."),
            pytest.param(
                *("breaks", TrainingFailed, "Rank 1 on worker-2 failed: nothing to divide by"), marks=pytest.mark.slow
            ),
            pytest.param("user error", FimError, r"^The rows r-1, r-2 are to blame\.$", marks=pytest.mark.slow),
            pytest.param("disk full", FimError, "The disk is full", marks=pytest.mark.slow),
        ],
    )
    def test_the_first_failure_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, kind: type[FimError], message: str
    ) -> None:
        monkeypatch.setenv("BEHAVIOUR", behaviour)
        with pytest.raises(FimError, match=message) as caught:
            start(tmp_path)
        assert type(caught.value) is kind
        wait_until_dead(pids_in(tmp_path / "work"))

    def test_an_unreachable_host_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEHAVIOUR", "hangs")
        with pytest.raises(TrainingFailed, match="No answer from far-away: pdsh has ended") as caught:
            start(tmp_path, "worker-1 slots=1", "far-away slots=1")
        assert "No route to host" in str(caught.value)
        wait_until_dead(pids_in(tmp_path / "work"))

    @pytest.mark.slow
    def test_a_lost_host_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEHAVIOUR", "hangs")

        def kill_agent() -> None:
            while len(pids_in(tmp_path / "work")) < 8:
                time.sleep(0.05)
            agents = [child for child in psutil.Process().children(recursive=True) if "--index" in child.cmdline()]
            os.kill(next(agent.pid for agent in agents if agent.cmdline()[-1] == "1"), signal.SIGKILL)

        killer = threading.Thread(target=kill_agent)
        killer.start()
        with pytest.raises(TrainingFailed, match=r"Lost worker-2 \(rank 1\): no sign of life for 3 seconds"):
            start(tmp_path, host_timeout_seconds=3.1)
        killer.join()
        wait_until_dead(pids_in(tmp_path / "work"))

    @pytest.mark.slow
    def test_cancel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEHAVIOUR", "stubborn")

        def cancel(event: dict[str, Any]) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            start(tmp_path, on_event=cancel)
        wait_until_dead(pids_in(tmp_path / "work"), seconds=0)


def job_in(folder: Path) -> Job:
    return Job(tiny_experiment(), folder, folder, Work(folder / "work"), "a")


def test_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-p 2222")
    job = job_in(tmp_path)
    program = [sys.executable, "-m", "fim_core.launchers.host_agent"]
    agent = [*program, "--job", str(job.work.job), "--hosts", "worker-1:1,worker-2:1"]
    first, second = pdsh_commands(job, HOSTS, ["-l", "me"])
    assert list(second.argv[:6]) == ["pdsh", "-S", "-w", "worker-2", "-l", "me"]
    assert second.argv[-1].startswith("exec env ")
    assert " OMP_NUM_THREADS=3 " in second.argv[-1]
    assert shlex.join(agent) in second.argv[-1]
    assert [command.argv[-1][-9:] for command in (first, second)] == ["--index 0", "--index 1"]
    assert second.environment["PDSH_SSH_ARGS_APPEND"].startswith("-p 2222 -o BatchMode=yes")
    words = mpirun_command(job, HOSTS, ["--tag-output"]).argv
    assert words[:3] == ["mpirun", "--bind-to", "none"]
    assert words[words.index("--tag-output") :][1:6] == ["--host", "worker-1:1", "-n", "1", "env"]
    parts = " ".join(words).split(" : ")
    assert [part[-9:] for part in parts] == ["--index 0", "--index 1"]
    assert parts[1].startswith("--host worker-2:1 -n 1 env ")


def test_percent_signs_survive_pdsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pdsh replaces %h by the name of the host."""
    monkeypatch.setenv("NCCL_DEBUG_FILE", "/logs/nccl.%h.%p")
    assert "NCCL_DEBUG_FILE=/logs/nccl.%%h.%%p" in pdsh_commands(job_in(tmp_path), HOSTS, [])[0].argv[-1]


def test_secrets_stay_out_of_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nMINE = 1=2\n\n")
    given = {
        "HF_TOKEN": "s",
        "HF_HOME": "/hf",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "0",
        "USER": "u",
    }
    expected = {"HF_HOME": "/hf", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
    assert forwarded_environment(given) == expected | {"NCCL_DEBUG": "INFO", "MINE": "1=2"}


def test_ranks_are_numbered_host_by_host() -> None:
    hosts = [Host("a", 2), Host("fe80::1", 3)]
    assert [list(ranks_of(hosts, index)) for index in (0, 1)] == [[0, 1], [2, 3, 4]]
    assert read_hosts(write_hosts(hosts)) == hosts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no machine"),
        ("worker-1\n", "line 1 of .* is 'worker-1'; write it as `worker-1 slots=8`"),
        ("# one\na slots=2\nb slots=0\n", "line 3"),
        ("a slots=2\na slots=2\n", "names a twice"),
    ],
)
def test_mistakes_in_a_hostfile(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(FimError, match=rf"launcher\.hostfile: .*{message}"):
        read_hostfile(tmp_path / "hosts")


def test_a_hostfile(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# machines\n\nb  slots=2  # fast\na slots = 4\n")
    assert read_hostfile(tmp_path / "hosts") == [Host("b", 2), Host("a", 4)]
    assert read_hostfile(tmp_path / "hosts", 1) == [Host("b", 1), Host("a", 1)]


def test_what_a_run_on_hosts_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    add_program(programs, "pdsh")
    with pytest.raises(FimError, match=r"launcher\.hostfile: nowhere does not exist"):
        launch(tiny_experiment(launcher={"type": "hostfile", "hostfile": "nowhere"}), *[tmp_path] * 2, tmp_path / "w")
    add_program(programs, "sbatch")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(FimError, match="this is no Slurm allocation"):
        launch(tiny_experiment(launcher={"type": "hostfile", "backend": "slurm"}), *[tmp_path] * 2, tmp_path / "w")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FimError, match=r"launcher\.backend pdsh: the program pdsh is not on this machine"):
        start(tmp_path)


def test_an_allocation_must_have_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    add_program(programs, "scontrol", "printf 'worker-1\\nworker-3\\n'")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "worker-[1,3]")
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "2(x2)")
    options = tiny_experiment(launcher={"type": "hostfile", "backend": "slurm"}).launcher
    assert hostfile.hosts_of(options) == [Host("worker-1", 2), Host("worker-3", 2)]
    other = tiny_experiment(**hostfile_options(tmp_path, backend="slurm")).launcher
    with pytest.raises(
        FimError, match="names worker-2, which the Slurm job 7 does not have; it has worker-1, worker-3"
    ):
        hostfile.hosts_of(other)


SINFO = """echo 'worker-1 gpu:a100:8(S:0-1)'; echo 'worker-2 gpu:a100:8'; echo 'worker-3 (null)'"""


def test_gpus_are_asked_for_where_there_are_some(programs: Path) -> None:
    add_program(programs, "sinfo", SINFO)
    gpu_hosts = [Host("worker-1", 4), Host("worker-2", 4)]
    assert slurm.gpu_request(gpu_hosts, []) == ["--gpus-per-node=4"]
    assert slurm.gpu_request([*gpu_hosts, Host("worker-3", 4)], []) == []
    assert slurm.gpu_request(gpu_hosts, ["--gres=gpu:8"]) == []
    with pytest.raises(FimError, match="the slots differ: worker-1 4, worker-2 2"):
        slurm.gpu_request([Host("worker-1", 4), Host("worker-2", 2)], [])


def test_the_job_of_an_earlier_attempt_is_cancelled(tmp_path: Path, programs: Path) -> None:
    add_program(programs, "scancel", f'echo "$@" >> {tmp_path}/cancelled')
    add_program(programs, "squeue", f"[ -e {tmp_path}/gone ] && exit; touch {tmp_path}/gone; echo 7")
    work = Work(tmp_path)
    slurm.cancel_earlier(work)
    assert not (tmp_path / "cancelled").exists()
    work.slurm_job.write_text("fim-tiny-a")
    slurm.cancel_earlier(work)
    assert (tmp_path / "cancelled").read_text() == "--name=fim-tiny-a\n"
    assert not work.slurm_job.exists()


def test_a_successor_runs_unless_it_is_dismissed(tmp_path: Path) -> None:
    script = 'echo "$1" > "$2"'
    dismissed = Successor(script, "a b", str(tmp_path / "dismissed"))
    dismissed.dismiss()
    dismissed.dismiss()
    died = Successor(script, "a b", str(tmp_path / "died"))
    assert died._shell.stdin is not None
    died._shell.stdin.close()
    died._shell.wait()
    assert not (tmp_path / "dismissed").exists()
    assert (tmp_path / "died").read_text() == "a b\n"
