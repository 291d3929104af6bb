"""Options that commands share: checkpoint, experiment file and storage folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fim_core.config import default_storage, load_experiment
from fim_core.errors import FimError
from fim_core.store import Store

if TYPE_CHECKING:
    from fim_core.serving.completer import Completer

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
ShowOption = Annotated[
    Literal["confident", "all"],
    typer.Option(
        help="confident: nothing below the threshold of the model's completion filter. all: every completion."
    ),
]
CandidatesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=16,
        help="Completions to choose from, if the most probable one does not parse or names something that does not exist. "
        "Default: the experiment's `serving.candidates`, else 1.",
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


def load_completer(
    checkpoint: Path | None, experiment: Path | None, show: Literal["confident", "all"], candidates: int | None
) -> tuple[Completer, Path]:
    """Load the model that `chosen_checkpoint` returns; returns its folder as well.

    Raises:
        FimError: as `chosen_checkpoint` and `Completer.load`.
    """
    from fim_core.serving.completer import Completer

    folder = chosen_checkpoint(checkpoint, experiment)
    options = load_experiment(experiment) if experiment else None
    if candidates is None:
        candidates = options.serving.candidates if options else 1
    dialect = options.evaluation.dialect if options else None
    return Completer.load(folder, show_all=show == "all", candidates=candidates, dialect=dialect), folder


def chosen_checkpoint(checkpoint: Path | None, experiment: Path | None) -> Path:
    """Return the given checkpoint folder, or the one that the experiment would serve.

    Raises:
        FimError: there is no checkpoint, or the storage holds models of several experiments and none was chosen.
    """
    from fim_core.serving.completer import default_checkpoint

    return checkpoint or default_checkpoint(load_experiment(experiment) if experiment else None)
