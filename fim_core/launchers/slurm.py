"""Hosts of Slurm: a batch job for each run, or a step of the allocation that the run is started in.

A batch job ends with its script, whatever happens to the process that submitted it, and the script ends with the agents.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from fim_core.config.hostfile import Host, slots_of_allocation
from fim_core.errors import FimError
from fim_core.launchers.commands import Commands, agent_command
from fim_core.process_group import Command
from fim_core.training.failures import TRACEBACK_LINES
from fim_core.training.job import Job, TrainingFailed, Work
from fim_core.training.log_tail import LineTail

STATUS_SECONDS = 1.0
STOP_SECONDS = 30.0
REFUSED_SECONDS = 5.0
"""Time for which Slurm has to give the same reason before a job that will not run is given up."""

WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SUSPENDED"}
RUNNING = {"RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT"}
WILL_NOT_RUN = (
    "ReqNodeNotAvail",
    "Nodes_required_for_job_are_DOWN",
    "BadConstraints",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "PartitionDown",
    "PartitionInactive",
    "InvalidAccount",
    "InvalidQOS",
    "AssociationJobLimit",
    "DependencyNeverSatisfied",
    "launch_failed_requeued_held",
)
"""Beginnings of the reasons for which a queued job waits until a person changes something."""


def hosts_of_allocation(slots: int | None) -> list[Host]:
    """The nodes of this process's allocation, in Slurm's order.

    Args:
        slots: ranks per node, see `slots_of_allocation`.
    """
    names = _slurm("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]).split()
    return [Host(name, count) for name, count in zip(names, slots_of_allocation(slots), strict=True)]


def require_in_allocation(hosts: Sequence[Host]) -> None:
    """Require that all hosts are nodes of this process's allocation.

    Raises:
        FimError: one is not.
    """
    nodes = {host.name for host in hosts_of_allocation(1)}
    if foreign := [host.name for host in hosts if host.name not in nodes]:
        raise FimError(
            f"launcher.hostfile names {', '.join(foreign)}, which the Slurm job {os.environ['SLURM_JOB_ID']} does not have; it "
            f"has {', '.join(sorted(nodes))}. Leave launcher.hostfile out to use the nodes of the job."
        )


def start_step(job: Job, hosts: Sequence[Host], arguments: Sequence[str], lock: int) -> Commands:
    """Start the agents as a step of the allocation that this process is in."""
    argv = ["srun", *_placement(hosts), "--overlap", *_STEP, *arguments, *agent_command(job, hosts, None)]
    return Commands("srun", [Command(argv, {}, job.log_folder / "launcher.log")], lock)


# All CPUs of the node for the agent's ranks, and an end with the first agent that fails.
_STEP = ["--kill-on-bad-exit=1", "--cpu-bind=none"]


def _placement(hosts: Sequence[Host]) -> list[str]:
    names = ",".join(host.name for host in hosts)
    return [f"--nodelist={names}", f"--nodes={len(hosts)}", f"--ntasks={len(hosts)}", "--ntasks-per-node=1"]


def job_name(job: Job) -> str:
    """Name of the Slurm job of an attempt, by which it is found even if nobody has read its id."""
    return f"fim-{job.experiment.name}-{job.attempt}"


def cancel_command(name: str) -> list[str]:
    """The command that cancels jobs of a name, queued or running."""
    return ["scancel", f"--name={name}"]


def cancel_earlier(work: Work) -> None:
    """Cancel the job of an earlier attempt, whose follower has died, and wait until it is gone.

    Raises:
        FimError: Slurm cannot be asked, or the job does not end.
    """
    if not work.slurm_job.exists():
        return
    name = work.slurm_job.read_text(encoding="utf-8").strip()
    if name:
        _slurm(*cancel_command(name))
        deadline = time.monotonic() + STOP_SECONDS
        while _slurm("squeue", "-h", f"--name={name}", "-o", "%i"):
            if time.monotonic() > deadline:
                raise FimError(
                    f"The Slurm job {name} of an earlier attempt at this run does not end. See `squeue --name={name}`."
                )
            time.sleep(0.2)
    work.slurm_job.unlink()


def gpu_request(hosts: Sequence[Host], arguments: Sequence[str]) -> list[str]:
    """Options of sbatch that ask for a GPU per rank, if the nodes have GPUs and the user's arguments ask for none.

    Raises:
        FimError: the numbers of ranks differ, and Slurm gives every node the same number of GPUs.
    """
    if any("gpu" in argument or argument.startswith("--gres") for argument in arguments):
        return []
    names = ",".join(host.name for host in hosts)
    nodes = dict(
        line.split(maxsplit=1) for line in _slurm("sinfo", "-h", "-N", f"--nodes={names}", "-o", "%N %G").splitlines()
    )
    if not nodes or not all("gpu" in nodes.get(host.name, "") for host in hosts):
        return []
    if len({host.slots for host in hosts}) > 1:
        raise FimError(
            "launcher.hostfile: Slurm gives every node of a job the same number of GPUs, but the slots differ: "
            f"{', '.join(f'{host.name} {host.slots}' for host in hosts)}. Make them equal, or name the GPUs in launcher_args."
        )
    return [f"--gpus-per-node={hosts[0].slots}"]


class BatchJob:
    """A batch job that runs the agents."""

    failed_hosts = ()

    def __init__(self, job: Job, hosts: Sequence[Host], arguments: Sequence[str]) -> None:
        """Submit the job.

        Raises:
            FimError: Slurm refuses it.
        """
        log = job.log_folder / "launcher.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = LineTail(log, from_end=True)
        self._lines: list[str] = []
        self._work, self._job_name = job.work, job_name(job)
        options = [
            *("--parsable", f"--job-name={self._job_name}", f"--output={log}", "--open-mode=append", "--no-requeue"),
            *(*_placement(hosts), f"--cpus-per-task={max(host.slots for host in hosts)}"),
            *(*gpu_request(hosts, arguments), *arguments),
        ]
        step = ["srun", *_placement(hosts), *_STEP, *agent_command(job, hosts, None)]
        job.work.slurm_job.write_text(self._job_name, encoding="utf-8")
        try:
            answer = _slurm("sbatch", *options, script=f"#!/bin/sh\nexec {shlex.join(step)}\n")
        except FimError:
            job.work.slurm_job.unlink()
            raise
        self._id = answer.partition(";")[0].strip()
        self.name = f"Slurm job {self._id}"
        self._state, self._reason = "PENDING", "None"
        self._asked = self._changed = time.monotonic()
        print(f"[launcher] {self.name} ({self._job_name})", file=sys.stderr, flush=True)

    @property
    def started(self) -> bool:
        """Whether the job has its nodes."""
        return self._state not in WAITING

    @property
    def failed(self) -> bool:
        """Whether the job has ended without success."""
        self._ask()
        # A job is completing as long as one of its nodes has not answered.
        if self._state == "COMPLETING":
            return self._reason == "NonZeroExitCode"
        return self.ended and self._state not in ("COMPLETED", "UNKNOWN")

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        self._ask()
        return self._state not in WAITING | RUNNING

    def check(self) -> None:
        """Check that the job will run.

        Raises:
            TrainingFailed: Slurm says that it will not as things are.
        """
        waited = time.monotonic() - self._changed
        if self._state == "PENDING" and self._reason.startswith(WILL_NOT_RUN) and waited > REFUSED_SECONDS:
            raise TrainingFailed(
                f"{self.name} does not run: {self._reason}. Check the nodes (`sinfo -N -l`) and launcher.launcher_args."
            )

    def output(self) -> str:
        """State of the job, and the last lines of its output."""
        self._lines += self._log.read()
        return "\n".join([f"{self.name}: {self._state}, {self._reason}", *self._lines[-TRACEBACK_LINES:]])

    def end(self) -> None:
        """Cancel the job unless it has ended.

        Raises:
            TrainingFailed: it does not end.
        """
        deadline = time.monotonic() + STOP_SECONDS
        cancelled = False
        while not self._is_gone():
            if not cancelled:
                _slurm(*cancel_command(self._job_name))
                cancelled = True
            if time.monotonic() > deadline:
                raise TrainingFailed(
                    f"{self.name} has not ended in {STOP_SECONDS:g} seconds. See `squeue -j {self._id}`."
                )
            time.sleep(0.2)
        self._work.slurm_job.unlink(missing_ok=True)

    def _is_gone(self) -> bool:
        """Whether Slurm has no nodes for the job; those that do not answer may be completing for long."""
        self._ask(at_once=True)
        return self.ended or self._state == "COMPLETING"

    def _ask(self, *, at_once: bool = False) -> None:
        """Ask for the job's state, at most every STATUS_SECONDS. A controller that does not answer is asked again."""
        now = time.monotonic()
        if self._state not in WAITING | RUNNING or (not at_once and now - self._asked < STATUS_SECONDS):
            return
        self._asked = now
        done = subprocess.run(
            ["squeue", "-h", "-t", "all", "-j", self._id, "-o", "%T %r"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            return
        state, _, reason = (done.stdout.strip() or "UNKNOWN None").partition(" ")
        if (state, reason) != (self._state, self._reason):
            self._state, self._reason, self._changed = state, reason, now
            if state == "PENDING" and reason not in ("None", ""):
                print(f"[launcher] {self.name} waits: {reason}", file=sys.stderr, flush=True)


def _slurm(*command: str, script: str | None = None) -> str:
    """Standard output of a command of Slurm.

    Raises:
        FimError: it fails.
    """
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FimError(
            f"`{command[0]}` fails: {done.stderr.strip() or done.stdout.strip()}. Check launcher.launcher_args."
        )
    return done.stdout.strip()
