"""The pipeline as commands run it: failed checks are told as they come, and Ctrl-C is told what stays."""

from __future__ import annotations

from typing import Any

import typer

from fim_core.config import Experiment
from fim_core.pipeline import StageResult, run

INTERRUPTED = 130


def run_pipeline(experiment: Experiment, *, until: str, force: bool = False) -> dict[str, StageResult]:
    """`fim_core.pipeline.run`, with one line on standard error for each failed check, and one when Ctrl-C ends it.

    Raises:
        FimError: as `run` does.
        typer.Exit: it was stopped.
    """
    teller = _Teller()
    try:
        return run(experiment, until=until, force=force, on_event=teller)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped. {teller.what_stays}", err=True)
        raise typer.Exit(INTERRUPTED) from None


class _Teller:
    """Listens to a run, and knows where the next one goes on."""

    def __init__(self) -> None:
        self._training = False
        self._resumes_from: int | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "stage", "asset": "champion_model"}:
                pass  # its one check is the gate, whose reasons the command prints
            case {"event": "stage", "asset": asset, "failed_checks": failed}:
                self._training = False
                for check in failed:
                    found = check.sentence.rstrip(".")
                    typer.echo(
                        f"{asset}: check failed ({check.severity}): {found}. It asks: {check.description}", err=True
                    )
            case {"event": "start", "resumed_from": step}:
                self._training, self._resumes_from = True, step
            case {"event": "checkpoint", "type": "deepspeed", "step": step}:
                self._resumes_from = step

    @property
    def what_stays(self) -> str:
        if not self._training:
            return "What is made already is kept; the next run goes on from there."
        if self._resumes_from is None:
            return "No state of the training was saved yet: the next run begins it anew, on the data that is there."
        return f"The next run resumes from step {self._resumes_from}."
