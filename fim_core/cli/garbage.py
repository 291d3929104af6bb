"""`fim gc`: remove versions that nothing refers to."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fim_core.cli.model import OfExperiment, Storage, open_store
from fim_core.errors import FimError
from fim_core.pipeline.garbage import experiments_in, find_garbage, remove


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gc")(collect)


def collect(
    storage: Storage = None,
    experiment: OfExperiment = None,
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="Newest checkpoints of each experiment that stay.")] = 3,
    keep_champions: Annotated[
        int,
        typer.Option(min=1, help="Newest champions of each experiment that stay; so does the one to roll back to."),
    ] = 3,
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Name of an experiment that is no longer run: nothing stays for its sake. May be repeated."),
    ] = None,
    work_days: Annotated[
        float, typer.Option(min=0, help="Days that unfinished attempts and unused cached batches stay.")
    ] = 14.0,
    fresh_minutes: Annotated[
        float, typer.Option(min=0, help="Minutes that new versions stay, save with --forget.")
    ] = 60.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Really remove. Without it, only say what would go.")
    ] = False,
) -> None:
    """Remove versions that no checkpoint, champion or running run refers to. A dry run unless --delete is given."""
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
        typer.echo(f"{len(garbage)} entries, {total}, would go. Run again with --delete to remove them.")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
