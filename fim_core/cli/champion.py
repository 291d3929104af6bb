"""`fim champion`: which model serves, why, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fim_core.config import Experiment, load_experiment
from fim_core.errors import FimError
from fim_core.pipeline.evaluation import DECISION, champion, promoted, roll_back
from fim_core.store import Artifact, Store

Config = Annotated[Path, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(help="Show, replace or roll back the champion.", no_args_is_help=True)
    commands.command("show")(show)
    commands.command("promote")(promote)
    commands.command("rollback")(rollback)
    app.add_typer(commands, name="champion")


def show(config: Config) -> None:
    """Print the champion, the earlier ones, and the reasons for the last decision."""
    experiment, store = _open(config)
    reigning = champion(store, experiment.name)
    if reigning is None:
        raise FimError(f"Experiment {experiment.name} has no champion yet. Materialize champion_model.")
    typer.echo(f"champion {reigning.version}: checkpoint {reigning.counts['candidate']}, {reigning.path / 'model'}")
    _print_reasons(reigning)
    for earlier in promoted(store, experiment.name):
        if earlier != reigning:
            typer.echo(f"earlier  {earlier.version}: checkpoint {earlier.counts['candidate']}")


def promote(config: Config) -> None:
    """Make the newest checkpoint champion if every rule of the gate holds; exit code 1 if not.

    What that needs and is not there yet, the checkpoint and its report, is made first.
    """
    from fim_core.pipeline import run

    experiment, store = _open(config)
    decided = run(experiment)["champion_model"].artifact
    candidate = decided.counts["candidate"]
    if decided.counts["promote"]:
        typer.echo(f"champion {decided.version}: checkpoint {candidate}, {decided.path / 'model'}")
    else:
        reigning = champion(store, experiment.name)
        stays = f"champion {reigning.version} stays" if reigning else "there is no champion"
        typer.echo(f"refused: checkpoint {candidate}; {stays}")
    _print_reasons(decided)
    if not decided.counts["promote"]:
        raise typer.Exit(1)


def rollback(
    config: Config,
    version: Annotated[str | None, typer.Option(help="Champion to go back to. Default: the one before.")] = None,
) -> None:
    """Make an earlier champion the champion again."""
    experiment, store = _open(config)
    target = roll_back(store, experiment.name, version)
    typer.echo(f"The champion of {experiment.name} is {target.version} again.")


def _print_reasons(decided: Artifact) -> None:
    for result in json.loads((decided.path / DECISION).read_text(encoding="utf-8"))["results"]:
        mark = {True: "+", False: "-", None: " "}[result["holds"]]
        typer.echo(f"{mark} {result['reason']}")


def _open(config: Path) -> tuple[Experiment, Store]:
    experiment = load_experiment(config)
    return experiment, Store(experiment.storage)
