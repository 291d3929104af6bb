"""`fim verify`: integrity check of all artifacts."""

from __future__ import annotations

from typing import Annotated

import typer

from fim_core.cli.model import ExperimentOption, StorageOption, open_store
from fim_core.store import ASSETS


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("verify")(verify)


def verify(
    storage: StorageOption = None,
    experiment: ExperimentOption = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete damaged versions; the next run makes them again.")
    ] = False,
) -> None:
    """Compare every file of every artifact with the digests in its manifest; exit with code 1 if any is damaged."""
    store = open_store(storage, experiment)
    intact, damaged, unreadable = 0, 0, 0
    for asset in ASSETS:
        for folder in store.unreadable(asset):
            unreadable += 1
            typer.echo(f"damaged  {folder}: its manifest.json is missing or damaged. Move the folder away.")
        for artifact in store.versions(asset):
            if (damage := artifact.find_damage()) is None:
                intact += 1
                continue
            damaged += 1
            typer.echo(f"damaged  {artifact.path}: {damage}")
            if delete:
                store.remove(artifact.path)
                store.forget_checks(asset, artifact.version)
    typer.echo(f"{intact} versions are intact, {damaged + unreadable} are damaged.")
    if damaged and delete:
        store.repair_current()
        typer.echo(f"Removed {damaged}; the next run makes them again if it needs them.")
    elif damaged:
        typer.echo("Run again with --delete to remove the damaged versions; the next run makes them again.")
    if unreadable or (damaged and not delete):
        raise typer.Exit(1)
