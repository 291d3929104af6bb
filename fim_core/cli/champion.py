"""`fim champion`: which model serves, why, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fim_core.config import Experiment, load_experiment
from fim_core.errors import FimError
from fim_core.pipeline.evaluation import DECISION, champion, roll_back
from fim_core.store import Store

Config = Annotated[Path, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(help="Show the champion, or roll back to an earlier one.", no_args_is_help=True)
    commands.command("show")(show)
    commands.command("rollback")(rollback)
    app.add_typer(commands, name="champion")


def show(config: Config) -> None:
    """Print the champion, the earlier ones, and the reasons for the last decision."""
    experiment, store = _open(config)
    reigning = champion(store, experiment.name)
    if reigning is None:
        raise FimError(f"Experiment {experiment.name} has no champion yet. Materialize champion_model.")
    typer.echo(f"champion {reigning.version}: checkpoint {reigning.counts['candidate']}, {reigning.path / 'model'}")
    for result in json.loads((reigning.path / DECISION).read_text(encoding="utf-8"))["results"]:
        typer.echo(f"  {result['reason']}")
    for earlier in store.versions("champion_model"):
        if earlier.counts["promote"] and earlier != reigning and earlier.manifest["experiment"] == experiment.name:
            typer.echo(f"earlier  {earlier.version}: checkpoint {earlier.counts['candidate']}")


def rollback(
    config: Config,
    version: Annotated[str | None, typer.Option(help="Champion to go back to. Default: the one before.")] = None,
) -> None:
    """Make an earlier champion the champion again."""
    experiment, store = _open(config)
    target = roll_back(store, experiment.name, version)
    typer.echo(f"The champion of {experiment.name} is {target.version} again.")


def _open(config: Path) -> tuple[Experiment, Store]:
    experiment = load_experiment(config)
    return experiment, Store(experiment.storage)
