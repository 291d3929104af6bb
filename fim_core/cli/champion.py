"""`fim champion`: show, promote and roll back the model that serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fim_core.atomic import read_json
from fim_core.champion.registry import champion, champion_weights, decisions, promoted, roll_back, withdrawn
from fim_core.config import Experiment, load_experiment
from fim_core.config.experiment import default_storage
from fim_core.errors import FimError
from fim_core.folders.decision import DecisionFolder
from fim_core.store import Artifact, Store

Config = Annotated[Path, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")]
OptionalConfig = Annotated[Path | None, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(help="Show, replace or roll back the champion.", no_args_is_help=True)
    commands.command("show")(show)
    commands.command("promote")(promote)
    commands.command("rollback")(rollback)
    commands.command("publish")(publish)
    app.add_typer(commands, name="champion")


def show(config: OptionalConfig = None) -> None:
    """Print the champion and the gate's reasons, the last candidate if it was refused, and earlier champions.

    Without an experiment file, print those of every experiment in the storage ($FIM_STORAGE, or .fim).
    """
    if config is not None:
        experiment, store = _open(config)
        names = [experiment.name]
    else:
        store = Store(default_storage())
        names = sorted({decided.manifest["experiment"] for decided in store.versions("champion_model")})
    if not any(decisions(store, name) for name in names):
        whose = f" of experiment {names[0]}" if names else ""
        raise FimError(
            f"The gate has not decided on any model{whose} in {store.root} yet. Run `fim champion promote {config or 'CONFIG'}`, "
            "or materialize champion_model."
        )
    for name in names:
        if config is None:
            typer.echo(f"experiment  {name}")
        _show(store, name)


def _show(store: Store, experiment: str) -> None:
    current, decided = champion(store, experiment), decisions(store, experiment)
    if current is None:
        typer.echo("There is no champion.")
    else:
        typer.echo(
            f"champion    {current.version}: checkpoint {current.counts['candidate']}, {champion_weights(current)}"
        )
        _print_reasons(current)
    last = decided[-1]
    if not last.counts["promote"] and (current is None or last.counts["candidate"] != current.counts["candidate"]):
        typer.echo(f"refused     {last.version}: checkpoint {last.counts['candidate']}, the last candidate")
        _print_reasons(last)
    rolled_back = withdrawn(store, experiment)
    for other in promoted(store, experiment):
        if other != current:
            what = "rolled back" if other.counts["candidate"] in rolled_back else "earlier"
            typer.echo(f"{what:<11} {other.version}: checkpoint {other.counts['candidate']}")


def promote(config: Config) -> None:
    """Promote the newest checkpoint to champion if every rule of the gate holds; otherwise exit with code 1.

    A missing checkpoint or report is made first.
    """
    from fim_core.cli.pipeline import open_experiment, run_pipeline

    experiment = open_experiment(config)
    store = Store(experiment.storage)
    decided = run_pipeline(experiment, until="champion_model")["champion_model"].artifact
    candidate = decided.counts["candidate"]
    if decided.counts["promote"]:
        typer.echo(f"champion {decided.version}: checkpoint {candidate}, {champion_weights(decided)}")
    else:
        current = champion(store, experiment.name)
        stays = f"champion {current.version} stays" if current else "there is no champion"
        typer.echo(f"refused: checkpoint {candidate}; {stays}")
    _print_reasons(decided)
    if not decided.counts["promote"]:
        raise typer.Exit(1)


def rollback(
    config: Config,
    version: Annotated[
        str | None, typer.Option(help="Version of the champion to restore. Default: the previous one.")
    ] = None,
) -> None:
    """Restore an earlier champion, and publish it if the experiment has `publish`."""
    experiment, store = _open(config)
    target = roll_back(store, experiment.name, version)
    typer.echo(f"The champion of {experiment.name} is {target.version} again.")
    _publish(experiment, store)


def publish(
    config: Config,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be published, and reach no target.")
    ] = False,
) -> None:
    """Publish the champion to the places under `publish`, for example after one of them could not be reached."""
    from fim_core.publishing.publish import planned

    experiment, store = _open(config)
    plan = planned(experiment, store)
    if not dry_run:
        _publish(experiment, store)
        return
    for line in plan:
        typer.echo(line)


def _publish(experiment: Experiment, store: Store) -> None:
    from fim_core.publishing.publish import publish_champion

    def show(event: dict[str, Any]) -> None:
        typer.echo(f"{event['place']}: {event['champion']} is published" + ("." if event["changed"] else " already."))

    publish_champion(experiment, store, show)


def _print_reasons(decided: Artifact) -> None:
    for line in reasons(decided):
        typer.echo(line)


def reasons(decided: Artifact) -> list[str]:
    """One line per rule of the gate, and a warning if the report has too few rows to detect small gains.

    Raises:
        DamagedFile: the decision is damaged.
    """
    content = read_json(DecisionFolder(decided.require_whole().path).decision)
    marks = {True: "+", False: "-", None: " "}
    lines = [f"{marks[result['holds']]} {result['reason']}" for result in content["results"]]
    return lines + ([] if content["power"]["enough"] else [f"! {content['power']['sentence']}"])


def _open(config: Path) -> tuple[Experiment, Store]:
    experiment = load_experiment(config)
    return experiment, Store(experiment.storage)
