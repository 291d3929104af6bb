"""Tails of log files that other processes are writing."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class LineTail:
    """Reader of the lines added to a file since the last read. Starts over when the file has been replaced."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._file_id: int | None = None
        self._offset = 0
        if from_end and path.exists():
            status = path.stat()
            self._file_id, self._offset = status.st_ino, status.st_size

    def read(self) -> list[str]:
        """Complete new lines, without line ends; a line that is still being written is left for the next read."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file_id:
                    self._file_id, self._offset = status.st_ino, 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", errors="replace").splitlines()


def event_of(line: str) -> dict[str, Any] | None:
    """The event in a line of metrics.jsonl; None, with a warning, for a line that a kill or the disk has damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    _log.warning("A damaged line of metrics.jsonl is skipped.")
    return None


class EventTail:
    """Reader of the events of one attempt. Skips those of earlier attempts in the file."""

    def __init__(self, path: Path, attempt: str) -> None:
        self._lines = LineTail(path)
        self._attempt = attempt
        self._begun = False

    def read(self) -> list[dict[str, Any]]:
        """New events."""
        events = []
        for line in self._lines.read():
            if (event := event_of(line)) is None:
                continue
            self._begun = self._begun or (event["event"] == "start" and event.get("attempt") == self._attempt)
            if self._begun:
                events.append(event)
        return events
