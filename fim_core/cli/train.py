"""`fim train`: the pipeline up to the trained checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train")(train)


def train(
    config: Annotated[Path, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")],
    force: Annotated[bool, typer.Option(help="Make every asset again, even if nothing has changed.")] = False,
) -> None:
    """Train an experiment's model. Missing assets are made first; an interrupted run resumes."""
    from fim_core.cli.pipeline import open_experiment, run_pipeline

    results = run_pipeline(open_experiment(config), until="trained_checkpoint", force=force)
    checkpoint = results["trained_checkpoint"].artifact
    counts = checkpoint.counts
    if counts["loss_after"] is not None:
        typer.echo(f"Held-out loss: {counts['loss_before']:.4f} before, {counts['loss_after']:.4f} after.")
    typer.echo(f"Checkpoint: {checkpoint.path}")
