"""Worker processes for untrusted SQL. SQL that exceeds a limit ends its worker; the next row gets a new one."""

from __future__ import annotations

import atexit
import json
import os
import pickle
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import cache, partial
from queue import LifoQueue
from typing import Any

from fim_core.errors import FimError
from fim_core.metrics.execution import Excluded
from fim_core.metrics.sql_workers import worker
from fim_core.metrics.sql_workers.measures import STAGES, Measures, OfGold, SqlRow
from fim_core.metrics.sql_workers.worker import Limits

MOST_WORKERS = 4

START_SECONDS = 120.0
"""A worker that is not ready after this time does not start."""


class Limit(StrEnum):
    """The limit that a completion exceeded."""

    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"
    """The worker process ended in another way."""
    STOPPED = "stopped"
    """The worker process did not answer, nor did its own timers end it: something else stopped it."""


@dataclass
class JudgedRow:
    """The measures of each text of a row.

    Attributes:
        measures: by text.
        excluded: why the row has no execution match.
        gold_limit: the limit that the gold completion exceeded. The stages from there on do not apply to the row.
        limits: the limits that other texts exceeded. Such a text fails the stages from there on.
    """

    measures: dict[str, Measures] = field(default_factory=dict)
    excluded: Excluded | None = None
    gold_limit: Limit | None = None
    limits: dict[str, Limit] = field(default_factory=dict)


class LimitExceeded(Exception):
    """A worker exceeded a limit while it judged a row."""

    def __init__(self, limit: Limit, *, was_new: bool) -> None:
        super().__init__(limit)
        self.limit = limit
        self.was_new = was_new


class Worker:
    """One worker process, started when it is first needed and after each end."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008 (frozen)
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = 0

    def answers(self, row: SqlRow, stages: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the results of `judge`, computed by the worker process.

        Raises:
            LimitExceeded: the worker exceeded a limit while it computed the next answer.
        """
        process = self._started()
        was_new, self._requests = self._requests == 0, self._requests + 1
        assert process.stdin
        assert process.stdout
        finished = False
        try:
            for number in range(len(stages) * (1 + len(row.texts))):
                with _killed_after(self._limits.patience(), process) as stopped:
                    if number == 0:
                        with suppress(BrokenPipeError):  # the process ended while reading; there are no answers
                            pickle.dump((row, tuple(stages)), process.stdin)
                            process.stdin.flush()
                    line = process.stdout.readline()
                if not line.endswith(b"\n"):
                    limit = Limit.STOPPED if stopped.is_set() else _limit_of(process.wait())
                    raise LimitExceeded(limit, was_new=was_new)
                yield json.loads(line)
            finished = True
        finally:
            # Unread answers would be taken for those of the next row.
            if not finished:
                self.close()

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            # This also closes the pipes. Data that was not written yet is dropped.
            self._process.communicate()
            self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-P", "-X", "utf8", "-m", worker.__name__, json.dumps(asdict(self._limits))]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), cwd="/"
            )
            self._requests = 0
            assert self._process.stdout
            with _killed_after(START_SECONDS, self._process):
                line = self._process.stdout.readline()
            if line != worker.READY:
                self.close()
                raise FimError(
                    f"The process that parses and runs SQL does not start. To see the error, run: {shlex.join(command)}"
                )
        return self._process


class SqlWorkers:
    """A pool of workers that judge rows in parallel."""

    def __init__(self, number: int) -> None:
        self._workers = [Worker() for _ in range(number)]
        self._idle: LifoQueue[Worker] = LifoQueue()
        for each in self._workers:
            self._idle.put(each)

    def judge(self, rows: Sequence[SqlRow], stages: Sequence[str] = tuple(STAGES)) -> list[JudgedRow]:
        """Judge rows at the given stages; returns results in their order.

        Raises:
            FimError: the workers do not start.
        """
        with ThreadPoolExecutor(len(self._workers), thread_name_prefix="sql-worker") as threads:
            return list(threads.map(partial(self._judge_row, stages), rows))

    def close(self) -> None:
        """Kill all worker processes."""
        for each in self._workers:
            each.close()

    def _judge_row(self, stages: Sequence[str], row: SqlRow) -> JudgedRow:
        one = self._idle.get()
        try:
            return judge_row(row, one, stages)
        finally:
            self._idle.put(one)


@cache
def shared_workers() -> SqlWorkers:
    """The pool of this process: one worker per core, at most 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = SqlWorkers(min(cores, MOST_WORKERS))
    atexit.register(workers.close)
    return workers


def judge_row(row: SqlRow, one: Worker, wanted: Sequence[str] = tuple(STAGES)) -> JudgedRow:
    """Judge a row at the stages `wanted`. After an exceeded limit, a new worker process judges the rest of the row."""
    judged = JudgedRow({text: {} for text in row.texts})
    gold: dict[str, OfGold] = {}
    stages = wanted
    texts: Sequence[str] = row.texts
    while stages:
        places = [(text, stage) for text in (None, *texts) for stage in stages]
        answered = 0
        try:
            for answered, answer in enumerate(one.answers(replace(row, texts=tuple(texts)), stages), start=1):
                text, stage = places[answered - 1]
                if text is None:
                    gold[stage] = OfGold(**answer)
                else:
                    judged.measures[text] |= answer
            break
        except LimitExceeded as exceeded:
            # Earlier rows may have used up the worker's memory, and a verdict must not depend on them: try again in a new one.
            if exceeded.limit != Limit.TIMEOUT and not exceeded.was_new:
                continue
            text, stage = places[answered]
            if text is None:
                judged.gold_limit, stages = exceeded.limit, stages[: stages.index(stage)]
            else:
                judged.limits[text] = exceeded.limit
                for rest in stages[stages.index(stage) :]:
                    judged.measures[text] |= STAGES[rest].failed(gold[rest])
                texts = texts[texts.index(text) + 1 :]
            if not texts:
                break
    for stage in wanted[len(stages) :]:
        for text in row.texts:
            judged.measures[text] |= STAGES[stage].not_judged(row, text)
    if "execution" in gold and gold["execution"].excluded:
        judged.excluded = Excluded(gold["execution"].excluded)
    return judged


@contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Kill a process if the block takes longer, which ends its pipes; yields an event that is set then."""
    killed = threading.Event()

    def kill() -> None:
        killed.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield killed
    finally:
        timer.cancel()


def _environment() -> dict[str, str]:
    """The environment that a worker needs to find modules and libraries, without secrets, settings and time zone."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONHOME") if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "TZ": "UTC"}


def _limit_of(status: int) -> Limit:
    if -status in worker.TIMEOUT_SIGNALS:
        return Limit.TIMEOUT
    return Limit.OUT_OF_MEMORY if status == worker.OUT_OF_MEMORY else Limit.CRASHED
