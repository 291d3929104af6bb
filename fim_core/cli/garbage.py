"""`fim gc`: removal of unreferenced versions."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fim_core.cli.model import ExperimentOption, StorageOption, open_store
from fim_core.errors import FimError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gc")(collect)


def collect(
    storage: StorageOption = None,
    experiment: ExperimentOption = None,
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="Newest checkpoints to keep per experiment.")] = 3,
    keep_champions: Annotated[
        int,
        typer.Option(min=1, help="Newest champions to keep per experiment; the rollback target is kept as well."),
    ] = 3,
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Name of an experiment to keep nothing for. May be repeated."),
    ] = None,
    work_days: Annotated[
        float, typer.Option(min=0, help="Days to keep unfinished attempts, and unused cached batches and downloads.")
    ] = 14.0,
    fresh_minutes: Annotated[
        float, typer.Option(min=0, help="Minutes to keep any new version, except with --forget.")
    ] = 60.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete. Without it, only list what would be deleted.")
    ] = False,
) -> None:
    """Remove versions that no kept checkpoint, champion or active run refers to. A dry run unless --delete is given."""
    from fim_core.pipeline.garbage import experiments_in, find_garbage, remove

    store = open_store(storage, experiment)
    if unknown := sorted(set(forget or ()) - experiments_in(store)):
        raise FimError(f"No experiment named {' or '.join(unknown)} has artifacts in {store.root}.")
    garbage = find_garbage(
        store,
        keep_checkpoints=keep_checkpoints,
        keep_champions=keep_champions,
        forget=forget or (),
        work_days=work_days,
        fresh_minutes=fresh_minutes,
    )
    for entry in garbage:
        typer.echo(f"{_megabytes(entry.bytes):>10}  {os.path.relpath(entry.path)}  ({entry.reason})")
    total = _megabytes(sum(entry.bytes for entry in garbage))
    if not garbage:
        typer.echo("Nothing to remove.")
    elif delete:
        remove(store, garbage)
        typer.echo(f"Removed {len(garbage)} entries, {total}.")
    else:
        typer.echo(f"{len(garbage)} entries, {total}, would be removed. Run again with --delete to remove them.")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
