"""Which model, and which store, a command uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fim_core.config import default_storage, load_experiment
from fim_core.errors import FimError
from fim_core.store import Store

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
Storage = Annotated[
    Path | None, typer.Option(help="Folder of all artifacts. Default: the experiment's, or FIM_STORAGE, or .fim.")
]


def open_store(storage: Path | None, experiment: Path | None) -> Store:
    """The store that is named, or that of the experiment, or the default one.

    Raises:
        FimError: there is no such folder.
    """
    if storage is None:
        storage = load_experiment(experiment).storage if experiment else default_storage()
    if not storage.is_dir():
        raise FimError(
            f"There is no folder {storage}. Name the folder of the artifacts with --storage, --experiment or FIM_STORAGE."
        )
    return Store(storage)


def chosen_checkpoint(checkpoint: Path | None, experiment: Path | None) -> Path:
    """The folder that is named, or the one that the experiment would serve.

    Raises:
        FimError: there is none, or no telling whose is meant.
    """
    from fim_core.serving.completer import default_checkpoint

    return checkpoint or default_checkpoint(load_experiment(experiment) if experiment else None)
