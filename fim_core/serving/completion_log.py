"""The log of `fim serve`: completions, and what users did with them, as an export that training reads.

    {"ID": …, "TIME": …, "MODEL": …, "TYPE": …, "INPUT": …, "OUTPUT": …, "SHOWN": …, "ACTION": "", "KEPT": "", …}

One JSON object a line. A report of what a user did has the ID of the completion, an ACTION and perhaps a KEPT, and no INPUT
(see `fim_core.records.feedback_log`). The log contains customer text.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fim_core.errors import FimError, reason_of
from fim_core.records.parse import format_input
from fim_core.records.schema import Completion

logger = logging.getLogger(__name__)

COLUMNS = (*("ID", "TIME", "MODEL", "TYPE", "INPUT", "OUTPUT", "SHOWN", "ACTION", "KEPT", "CONFIDENCE", "LATENCY_MS"),)
SUFFIX = ".jsonl"

MODE = 0o600
"""Permissions of a new log."""

MOST_IDS = 100_000
"""Number of the last completions that can be reported on."""


class CompletionLog:
    """Appends rows to a log.

    Each row is one write to the end of the file, which is opened for it, so that the file can be moved away and several servers
    can share it. Errors of the file are logged once until a row can be written again; they never raise. May be used in
    several threads.

    Args:
        path: of the log; made if it does not exist.
        model: version of the model, for the rows.

    Raises:
        FimError: it cannot be written, or its name does not say that it holds JSON lines.
    """

    def __init__(self, path: Path, model: str) -> None:
        if path.suffix != SUFFIX:
            raise FimError(f"{path} is not named like JSON lines, as which it will be read. Name it *{SUFFIX}.")
        self.path = path
        self._model = model
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._failing = False
        self._lock = threading.Lock()
        try:
            self._append(b"")
            if not _ends_in_line_break(path):
                self._append(b"\n")
        except OSError as error:
            raise FimError(f"The log {path} cannot be written ({reason_of(error)}). Name another path.") from error

    @property
    def is_private(self) -> bool:
        """Whether only the owner of the log can read it."""
        return self.path.stat().st_mode & 0o077 == 0

    def new_id(self) -> str:
        """A new id of a completion."""
        name = uuid.uuid4().hex
        self._ids[name] = None
        if len(self._ids) > MOST_IDS:
            self._ids.popitem(last=False)
        return name

    def knows(self, name: str) -> bool:
        """Whether an id is that of one of the last completions."""
        return name in self._ids

    def completion(
        self,
        name: str,
        state: Completion,
        output: str,
        *,
        kind: str,
        shown: bool,
        confidence: float | None,
        seconds: float,
    ) -> bool:
        """Append a completion.

        Args:
            name: its id.
            state: the state of the editor.
            output: what the model generated, also if it is not shown.
            kind: its TYPE.
            shown: whether the client got it.
            confidence: see `fim_core.serving.choice.Choice`.
            seconds: from the request to the end of the completion.

        Returns:
            Whether it was written.
        """
        return self._write(
            ID=name,
            TYPE=kind,
            INPUT=format_input(state),
            OUTPUT=output,
            SHOWN=shown,
            CONFIDENCE=confidence,
            LATENCY_MS=round(1000 * seconds, 1),
        )

    def report(self, name: str, action: str, kept: str) -> bool:
        """Append what a user did with a completion; returns whether it was written."""
        return self._write(ID=name, ACTION=action, KEPT=kept)

    def _write(self, **values: Any) -> bool:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {**dict.fromkeys(COLUMNS, ""), "TIME": now, "MODEL": self._model, **values}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                if not self._failing:
                    logger.error("fim: the log %s cannot be written (%s); rows are lost.", self.path, reason_of(error))
                self._failing = True
            else:
                self._failing = False
            return not self._failing

    def _append(self, line: bytes) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            written = os.write(file, line)
            if written < len(line):
                # Half a line would make the whole log unreadable.
                end = os.lseek(file, 0, os.SEEK_CUR)
                if os.fstat(file).st_size == end:
                    os.ftruncate(file, end - written)
                raise OSError("the disk is full")
        finally:
            os.close(file)


def _ends_in_line_break(path: Path) -> bool:
    """Whether a file is empty or ends in a line break; it does not after a power failure, or if it was edited."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")
