"""Options that commands share: checkpoint, experiment file and storage folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fim_core.config import default_storage, load_experiment
from fim_core.errors import FimError
from fim_core.store import Store

CheckpointOption = Annotated[
    Path | None,
    typer.Option(help="Checkpoint folder. Default: the experiment's champion, else its newest trained_checkpoint."),
]
ExperimentOption = Annotated[
    Path | None,
    typer.Option(
        "--experiment",
        envvar="FIM_EXPERIMENT",
        help="Experiment file. Needed if it sets `storage`, or if the storage holds models of several experiments.",
    ),
]
StorageOption = Annotated[
    Path | None, typer.Option(help="Folder of all artifacts. Default: the experiment's, else $FIM_STORAGE, else .fim.")
]


def open_store(storage: Path | None, experiment: Path | None) -> Store:
    """Open the given store, that of the experiment, or the default one.

    Raises:
        FimError: the folder does not exist.
    """
    if storage is None:
        storage = load_experiment(experiment).storage if experiment else default_storage()
    if not storage.is_dir():
        raise FimError(
            f"There is no folder {storage}. Set the artifact folder with --storage, --experiment or FIM_STORAGE."
        )
    return Store(storage)


def chosen_checkpoint(checkpoint: Path | None, experiment: Path | None) -> Path:
    """Return the given checkpoint folder, or the one that the experiment would serve.

    Raises:
        FimError: there is no checkpoint, or the storage holds models of several experiments and none was chosen.
    """
    from fim_core.serving.completer import default_checkpoint

    return checkpoint or default_checkpoint(load_experiment(experiment) if experiment else None)
