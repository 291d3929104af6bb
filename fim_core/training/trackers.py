"""Event log of a run (JSON lines), and experiment trackers that receive its numbers."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TextIO

from fim_core.atomic import replacing
from fim_core.config import Experiment, portable
from fim_core.config.training import TrackerConfig, WandbConfig
from fim_core.errors import FimError
from fim_core.training.job import Work
from fim_core.training.log_tail import event_of


class Tracker(Protocol):
    """Receiver of the numbers of events."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Record numbers with names such as `train/loss` at an optimizer step."""

    def close(self) -> None:
        """Send what is buffered, and end the run."""


class TensorBoard:
    """Event files under `trackers/tensorboard`."""

    def __init__(self, config: TrackerConfig, name: str, work: Work, settings: dict[str, Any], resumed_at: int) -> None:
        _require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        # Points after the resumed step are from an attempt that was lost.
        self._writer = SummaryWriter(
            str(work.trackers / "tensorboard" / config.project / (config.name or name)),
            purge_step=resumed_at + 1 if resumed_at else 0,
        )
        self._writer.add_text("experiment", f"```json\n{json.dumps(settings, indent=2)}\n```", resumed_at)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class RunTracker:
    """wandb, or trackio, which has the same interface."""

    def __init__(
        self, package: str, config: TrackerConfig, name: str, work: Work, settings: dict[str, Any], resumed_at: int
    ) -> None:
        module = _require(package, package)
        options: dict[str, Any] = {"project": config.project, "name": config.name or name, "config": settings}
        if package == "wandb":
            # One run for all attempts in the same work folder. wandb uses a temporary folder if `dir` does not exist.
            work.trackers.mkdir(parents=True, exist_ok=True)
            options |= {"id": f"{work.root.name}-{name}"[-64:], "resume": "allow", "dir": str(work.trackers)}
            if isinstance(config, WandbConfig) and config.entity:
                options["entity"] = config.entity
        else:
            options |= {"resume": "allow"}
        self._run = module.init(**options)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


def open_trackers(experiment: Experiment, work: Work, resumed_at: int) -> list[Tracker]:
    """The trackers that the experiment enables.

    Raises:
        FimError: the package of one is not installed.
    """
    sections = {"name", "seed", "model", "optimizer", "scheduler", "epochs"}
    settings = portable(experiment.model_dump(mode="json", include=sections))
    trackers: list[Tracker] = []
    if experiment.tensorboard and experiment.tensorboard.enable:
        trackers.append(TensorBoard(experiment.tensorboard, experiment.name, work, settings, resumed_at))
    for package, config in (("wandb", experiment.wandb), ("trackio", experiment.trackio)):
        if config and config.enable:
            trackers.append(RunTracker(package, config, experiment.name, work, settings, resumed_at))
    return trackers


def _require(package: str, option: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise FimError(
            f"`{option}` is enabled in the experiment, but the package {package} is not installed. "
            f"Install it (pip install {package}), or set {option}.enable to false."
        ) from error


class EventLog:
    """Writes each event as a line of JSON, and its numbers to the trackers; used on rank 0."""

    def __init__(self, path: Path, trackers: list[Tracker], resumed_at: int | None) -> None:
        """Open the log, and drop events after the step that is resumed from.

        Args:
            resumed_at: the step of the resumed state; None at a fresh start, which empties the log.
        """
        self._trackers = trackers
        kept = [] if resumed_at is None else _up_to(path, resumed_at)
        with replacing(path) as scratch:
            scratch.write_text("".join(kept), encoding="utf-8")
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, event: str, step: int, **content: Any) -> None:
        """Record an event at a step."""
        self._file.write(json.dumps({"event": event, "step": step, **content}) + "\n")
        self._file.flush()
        group = {"step": "train"}.get(event, event)
        numbers = {f"{group}/{key}": float(value) for key, value in content.items() if isinstance(value, (int, float))}
        if event in ("step", "eval"):
            for tracker in self._trackers:
                tracker.log(numbers, step)

    def close(self) -> None:
        """Close the file and the trackers."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def _step(event: dict[str, Any]) -> float:
    number = event.get("step")
    return number if isinstance(number, (int, float)) else math.inf


def _up_to(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    # A kill may have left half a line at the end.
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    # Exports whose removal was recorded after that step are gone nevertheless.
    return [
        line
        for line in lines
        if (event := event_of(line)) is not None
        and (event["event"] == "removed" or (event["event"] != "end" and _step(event) <= step))
    ]
