"""Time limits of a run: how long it takes, and how long ago rank 0 last touched the heartbeat file."""

from __future__ import annotations

import time

from fim_core.training.job import Job


class Heartbeat:
    """Watches the heartbeat file of a run, from its start on."""

    def __init__(self, job: Job) -> None:
        self._file = job.work.heartbeat
        self._launcher = job.experiment.launcher
        self._began = self._seen = time.monotonic()
        self._beat: float | None = None

    def why_stop(self) -> str | None:
        """Why the run must not go on: it takes too long, or its heartbeat has stopped; None if it may go on."""
        now = time.monotonic()
        try:
            beat = self._file.stat().st_mtime
        except FileNotFoundError:
            beat = None
        if beat != self._beat:
            self._beat, self._seen = beat, now
        launcher = self._launcher
        if launcher.timeout_minutes is not None and now - self._began > launcher.timeout_minutes * 60:
            return f"Training took longer than launcher.timeout_minutes ({launcher.timeout_minutes:g})."
        if now - self._seen > launcher.heartbeat_timeout_minutes * 60:
            return (
                "Training has shown no heartbeat for launcher.heartbeat_timeout_minutes "
                f"({launcher.heartbeat_timeout_minutes:g})."
            )
        return None
