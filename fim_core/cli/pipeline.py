"""Pipeline runs from the command line, with progress, failed checks and a note after Ctrl-C."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fim_core.cli.row_bars import RowBars, rows_line
from fim_core.config import Experiment, read_experiment_file

if TYPE_CHECKING:
    from fim_core.pipeline import StageResult

INTERRUPTED = 130

SECONDS_BETWEEN_LINES = 30.0
"""Interval between lines about steps or rows when there is no terminal for a progress bar."""


def open_experiment(path: Path) -> Experiment:
    """Load an experiment file. The notice about a file of ArcticTraining goes to standard error.

    Raises:
        FimError: as `read_experiment_file` does.
    """
    file = read_experiment_file(path)
    if (notice := file.notice) is not None:
        typer.echo(notice, err=True)
    return file.experiment


def run_pipeline(experiment: Experiment, *, until: str, force: bool = False) -> dict[str, StageResult]:
    """Run `fim_core.pipeline.run` and print each asset and each failed check on standard error.

    Raises:
        FimError: as `run` does.
        typer.Exit: Ctrl-C stopped it; the last line says where the next run continues.
    """
    from fim_core.pipeline import run

    printer = _ProgressPrinter()
    try:
        return run(experiment, until=until, force=force, on_event=printer)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. {printer.resume_note}", err=True)
        raise typer.Exit(INTERRUPTED) from None


class _ProgressPrinter:
    """Prints the events of a run and remembers where the next run would continue."""

    def __init__(self) -> None:
        self._training = False
        self._resumes_from: int | None = None
        self._total_steps = 0
        self._next_line = 0.0
        self._rows = RowBars()

    def __call__(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "stage", "asset": asset, "failed_checks": failed}:
                self._training = False
                done = "reused" if event["reused"] else f"made in {event['seconds']:,.1f} s"
                typer.echo(f"{asset} {event['version']}: {done}", err=True)
                # The one check of a champion is the gate, whose reasons the command prints.
                for check in failed if asset != "champion_model" else ():
                    found = check.sentence.rstrip(".")
                    typer.echo(
                        f"{asset}: check failed ({check.severity}): {found}. Expected: {check.description}", err=True
                    )
            case {"event": "start", "resumed_from": step, "total_steps": total, "gradient_clipping": clipping}:
                self._training, self._resumes_from, self._total_steps = True, step, total
                if step is not None:
                    typer.echo(f"Training resumes from step {step} of {total}.", err=True)
                typer.echo(
                    f"{total:,} optimizer steps of {event['batch_rows']:,} rows, schedule {event['schedule']}, peak learning rate "
                    f"{event['lr']:g}, {event['warmup_steps']} steps of warm-up, "
                    + (f"gradients clipped to norm {clipping:g}." if clipping else "gradients not clipped."),
                    err=True,
                )
            case {"event": "published", "place": place, "champion": name, "changed": changed}:
                typer.echo(f"{place}: {name} is published" + ("." if changed else " already."), err=True)
            case {"event": "warning", "message": message}:
                typer.echo(f"Warning: {message}", err=True)
            case {"event": "eval", "step": step, "loss": loss} if not sys.stderr.isatty():
                typer.echo(f"step {step} of {self._total_steps}: held-out loss {loss:.4f}", err=True)
            case {"event": "step"} if self._line_is_due():
                typer.echo(
                    f"step {event['step']} of {self._total_steps}: loss {event['loss']:.4f}, "
                    f"{event['rows_per_second']:,.1f} rows/s",
                    err=True,
                )
            case {"event": "rows"} if sys.stderr.isatty():
                self._rows.show(event)
            case {"event": "rows"} if self._line_is_due():
                typer.echo(rows_line(event), err=True)
            case {"event": "checkpoint", "type": "deepspeed", "step": step}:
                self._resumes_from = step

    def _line_is_due(self) -> bool:
        """Whether to print a line now: there is no terminal, and the last line is old enough. Starts the next interval."""
        now = time.monotonic()
        if sys.stderr.isatty() or now < self._next_line:
            return False
        self._next_line = now + SECONDS_BETWEEN_LINES
        return True

    @property
    def resume_note(self) -> str:
        """Where the next run continues, in one sentence."""
        if not self._training:
            return "Finished assets are kept; the next run continues from there."
        if self._resumes_from is None:
            return "No training state was saved yet: the next run starts training again, on the same data."
        return f"The next run resumes from step {self._resumes_from}."
