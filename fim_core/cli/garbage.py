"""`fim gc`: remove versions that nothing refers to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fim_core.errors import FimError
from fim_core.garbage import find_garbage, remove
from fim_core.store import Store


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("gc")(collect)


def collect(
    storage: Annotated[
        Path, typer.Option(help="Folder of all artifacts.", envvar="FIM_STORAGE", show_default=".fim")
    ] = Path(".fim"),
    keep_checkpoints: Annotated[int, typer.Option(min=1, help="Newest checkpoints of each experiment that stay.")] = 3,
    work_days: Annotated[
        float, typer.Option(min=0, help="Days that unfinished attempts and unused parts stay.")
    ] = 14.0,
    fresh_minutes: Annotated[float, typer.Option(min=0, help="Minutes that new versions stay in any case.")] = 60.0,
    delete: Annotated[
        bool, typer.Option("--delete", help="Really remove. Without it, only say what would go.")
    ] = False,
) -> None:
    """Remove versions that no checkpoint, champion or running run refers to. A dry run unless --delete is given."""
    if not storage.is_dir():
        raise FimError(f"There is no folder {storage}. Name the folder of the artifacts with --storage or FIM_STORAGE.")
    store = Store(storage)
    garbage = find_garbage(store, keep_checkpoints=keep_checkpoints, work_days=work_days, fresh_minutes=fresh_minutes)
    for entry in garbage:
        typer.echo(f"{_megabytes(entry.bytes):>10}  {os.path.relpath(entry.path)}  ({entry.reason})")
    total = _megabytes(sum(entry.bytes for entry in garbage))
    if not garbage:
        typer.echo("Nothing to remove.")
    elif delete:
        remove(store, garbage)
        typer.echo(f"Removed {len(garbage)} folders, {total}.")
    else:
        typer.echo(f"{len(garbage)} folders, {total}, would go. Run again with --delete to remove them.")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
