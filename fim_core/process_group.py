"""Groups of processes that end as a whole: on request, when one fails, and when the process that started them dies.

Four measures together leave no survivor. Each process is in a session of its own, whose process group is killed as a
whole. All have an environment variable that their descendants inherit, by which descendants that have left the session
are found and killed: ninja, with which DeepSpeed builds its operators, gives each compiler a separate group. A guard
process waits for its standard input to close, which the kernel does in whatever way the parent dies, and then kills all
of them. And each rank asks the kernel to be killed with its parent (see `die_with_parent`).

Linux divides the CPU equally among sessions (`sched_autogroup_enabled`). In the session of the shell or of the server that
started them, processes would share one part of it with everything else that runs there.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

PARENT = "FIM_PARENT_PID"
"""Environment variable for a process that is to die with its parent: the parent's process id."""
MARK = "FIM_PROCESS_GROUP"
"""Environment variable of all processes of a group and of their descendants: the name of the group."""
GRACE_SECONDS = 3.0
_SWEEPS = 5
"""Rounds of searching for descendants, as one that is being killed may just have started another."""
_GUARD = f"""
read _
for sweep in $(seq {_SWEEPS}); do
    marked=$(grep -lsF "$1" /proc/[0-9]*/environ | cut -d / -f 3)
    [ -n "$marked" ] || break
    kill -KILL $marked
done
"""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Command:
    """One process to start.

    Attributes:
        argv: program and arguments.
        environment: variables in addition to those of this process.
        log: file to which its standard output and error are appended.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path


class ProcessGroup:
    """Processes that end together; as a context manager, it ends them on exit."""

    def __init__(self, commands: Sequence[Command], keep_open: Sequence[int] = ()) -> None:
        """Start all commands.

        Args:
            keep_open: file descriptors that every process inherits, for example a lock to hold until the last one ends.
        """
        self._name = secrets.token_hex(16)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", f"{MARK}={self._name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for command in commands:
                self.processes.append(self._start(command, keep_open))
        except BaseException:
            self.end()
            raise

    def _start(self, command: Command, keep_open: Sequence[int]) -> subprocess.Popen[bytes]:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as log:
            return subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **command.environment, MARK: self._name},
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )

    @property
    def running(self) -> bool:
        """Whether any process still runs."""
        return any(process.poll() is None for process in self.processes)

    def failed(self) -> list[int]:
        """Indices of the processes that have ended with an error."""
        codes = [process.poll() for process in self.processes]
        return [index for index, code in enumerate(codes) if code not in (None, 0)]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to each process that still runs, but not to its children."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def end(self) -> None:
        """Terminate all processes, then kill what is left of them; returns when every process is gone."""
        self._signal_sessions(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        self._signal_sessions(signal.SIGKILL)
        for process in self.processes:
            process.wait()
        self._kill_descendants()
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()

    def _signal_sessions(self, number: signal.Signals) -> None:
        """Send a signal to each process that still runs, and to its children.

        The id of a process that has ended may belong to another one by now; its children are found by their environment.
        """
        for process in self.processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def _kill_descendants(self) -> None:
        """Kill descendants that have left their session, or whose parent has ended."""
        for _ in range(_SWEEPS):
            marked = [process for process in psutil.process_iter() if _name_of(process) == self._name]
            for process in marked:
                with suppress(psutil.Error):
                    process.kill()
            if not marked:
                return
            psutil.wait_procs(marked, timeout=GRACE_SECONDS)

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()


class Successor:
    """A shell script that is run when this process dies, in whatever way, before `dismiss`."""

    def __init__(self, script: str, *arguments: str) -> None:
        """Start a shell that waits, in a session of its own.

        Args:
            script: text for `sh`; the arguments are `$1`, `$2`, …
        """
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", f'read -r dismissed; [ -z "$dismissed" ] || exit 0\n{script}', "successor", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the shell without running the script."""
        if self._shell.poll() is None:
            with suppress(BrokenPipeError):
                self._shell.communicate(b"dismissed\n")


def _name_of(process: psutil.Process) -> str | None:
    """The group that a process belongs to by its environment; None for a zombie, or if its environment is not readable."""
    try:
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies.

    Does nothing if the environment names no parent (a rank that another launcher started), or on other systems than
    Linux.

    Raises:
        SystemExit: the parent has died already.
    """
    parent = os.environ.get(PARENT)
    if parent is None or sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(parent):
        raise SystemExit("the launcher is gone")
