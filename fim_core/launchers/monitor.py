"""Monitoring of a run: its events and the logs of its ranks."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fim_core.launchers.base import RunningRanks
from fim_core.training.job import Job
from fim_core.training.log_tail import EventTail, LineTail

OnEvent = Callable[[dict[str, Any]], None]

POLL_SECONDS = 0.1
MAX_LINES = 2_000
MAX_LINE_LENGTH = 2_000
# rank-3.log is ours, 20260131120000_rank3.log is DeepSpeed's, launcher.log is the output of its launcher.
_LOG_NAME = re.compile(r"(?:^|_)(?:rank-?(?P<rank>\d+)|launcher)\.log$")


def follow(job: Job, ranks: RunningRanks, on_event: OnEvent) -> None:
    """Pass on events and show logs until every rank has ended; ends the ranks in any case.

    Raises:
        FimError, TrainingFailed: a rank has failed.
    """
    events = EventTail(job.work.metrics, job.attempt)
    logs = RankLogs(job)
    newest = _newest_state(job)

    def report() -> None:
        nonlocal newest
        for event in events.read():
            if event["event"] == "checkpoint" and event.get("type") == "deepspeed":
                newest = event["step"]
            on_event(event)
        logs.show()

    try:
        while ranks.running:
            report()
            ranks.check()
            time.sleep(POLL_SECONDS)
        report()
        if ranks.failure() is not None:
            # The first rank to fail makes others fail; give all of them a moment to record why.
            time.sleep(POLL_SECONDS)
        if (error := ranks.failure()) is not None:
            raise error
    finally:
        ranks.end()
        # Ranks that are ended may have saved another state, from which the next attempt resumes.
        report()
        # A rank may be ended after it has saved a state and before it has recorded that.
        if (step := _newest_state(job)) > newest:
            on_event({"event": "checkpoint", "step": step, "type": "deepspeed"})


def _newest_state(job: Job) -> int:
    """The step of the newest state in the work folder; -1 if there is none."""
    return max((int(folder.name.split("-")[1]) for folder in job.work.states.glob("step-*")), default=-1)


class RankLogs:
    """Copies what this attempt adds to the log files of a run to standard error, which Dagster keeps with the run.

    Each line is prefixed with its rank. At most MAX_LINES of a rank are shown; its file has all.
    """

    def __init__(self, job: Job) -> None:
        self._folder = job.log_folder
        self._chosen = job.experiment.logger.print_output_ranks
        # Skip what earlier attempts have written.
        self._tails = {path: LineTail(path, from_end=True) for path, _ in self._files()}
        self._shown: dict[Path, int] = {}

    def show(self) -> None:
        """Print new lines."""
        for path, source in self._files():
            shown = self._shown.get(path, 0)
            lines = self._tails.setdefault(path, LineTail(path)).read()
            for line in lines[: max(0, MAX_LINES - shown)]:
                print(f"[{source}] {line[:MAX_LINE_LENGTH]}", file=sys.stderr, flush=True)
            self._shown[path] = shown + len(lines)
            if shown < MAX_LINES <= self._shown[path]:
                print(f"[{source}] Further lines are only in {path}", file=sys.stderr, flush=True)

    def _files(self) -> Iterator[tuple[Path, str]]:
        for path in sorted(self._folder.glob("*.log")):
            match = _LOG_NAME.search(path.name)
            if match is None:
                continue
            rank = match["rank"]
            if rank is None:
                yield path, "launcher"
            elif self._chosen == "all" or int(rank) in self._chosen:
                yield path, f"rank {rank}"
