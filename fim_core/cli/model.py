"""Which model a command uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Checkpoint folder. Default: the experiment's champion, else its newest trained_checkpoint."),
]
OfExperiment = Annotated[
    Path | None,
    typer.Option(
        "--experiment",
        envvar="FIM_EXPERIMENT",
        help="Experiment file. Needed where its `storage` is another, or holds models of several experiments.",
    ),
]


def chosen_checkpoint(checkpoint: Path | None, experiment: Path | None) -> Path:
    """The folder that is named, or the one that the experiment would serve.

    Raises:
        FimError: there is none, or no telling whose is meant.
    """
    from fim_core.config import load_experiment
    from fim_core.serving.completer import default_checkpoint

    return checkpoint or default_checkpoint(load_experiment(experiment) if experiment else None)
