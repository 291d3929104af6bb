"""The worker process that judges rows, under limits that the operating system enforces by killing it.

`python -m fim_core.metrics.sql_workers.worker LIMITS` (as JSON) reads pickled requests from standard input, which only its parent
writes. It writes a line when it is ready, and then a line of JSON for each stage of a row: plain data, because the process runs
untrusted SQL. The exit status tells the parent which limit was exceeded.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from typing import BinaryIO

from fim_core.metrics.execution import Sandbox
from fim_core.metrics.sql_workers.measures import OfGold, SqlRow, judge


@dataclass(frozen=True)
class Limits:
    """Limits of one stage of one completion.

    Attributes:
        cpu_seconds: processor time, which does not depend on the load of the machine.
        seconds: elapsed time, for functions that only wait; scaled up with the load of the machine.
        memory: bytes of address space on top of what the process uses when it is ready.
    """

    cpu_seconds: float = 2.0
    seconds: float = 4.0
    memory: int = 512 * 2**20

    def elapsed(self) -> float:
        """Seconds of elapsed time under the present load of the machine."""
        return self.seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))

    def patience(self) -> float:
        """Seconds after which a process that has not ended by its own limits is not working at all."""
        return 2 * self.elapsed() + 1


READY = b"ready\n"
OUT_OF_MEMORY = 3
"""Exit status."""
TIMEOUT_SIGNALS = (signal.SIGPROF, signal.SIGALRM)
"""They have no handler, so they end the process even inside a DuckDB function that never returns."""

Request = tuple[SqlRow, tuple[str, ...]]
"""A row and the stages to run."""


def main(limits: Limits) -> None:
    """Answer requests until standard input ends."""
    requests, answers = open(0, "rb"), sys.stdout.buffer  # noqa: SIM115 (until the process ends)
    sandbox = Sandbox()
    limit_process(limits.memory)
    answers.write(READY)
    answers.flush()
    # Error messages of DuckDB and Python may quote SQL, which must not be logged.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    try:
        while requests.peek(1):
            _answer(pickle.load(requests), sandbox, limits, answers)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def limit_process(memory: int) -> None:
    """Set the limits of this process; they cannot be raised again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends this process
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in TIMEOUT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    for kind, value in (
        (resource.RLIMIT_AS, _address_space() + memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _answer(request: Request, sandbox: Sandbox, limits: Limits, answers: BinaryIO) -> None:
    row, stages = request
    judged = judge(row, stages, sandbox)
    for _ in range(len(stages) * (1 + len(row.texts))):
        _set_timers(limits.cpu_seconds, limits.elapsed())
        found = next(judged)
        _set_timers(0, 0)
        answers.write(json.dumps(asdict(found) if isinstance(found, OfGold) else found).encode() + b"\n")
        answers.flush()
    judged.close()


def _set_timers(cpu_seconds: float, seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main(Limits(**json.loads(sys.argv[1])))
