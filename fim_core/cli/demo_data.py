"""`fim demo-data`: a synthetic export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fim_core.atomic import require_free


def demo_data(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .csv or .parquet.")] = Path("demo.csv"),
    rows: Annotated[int, typer.Option(min=1, help="Rows to generate.")] = 6000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 7,
) -> None:
    """Write a synthetic export like the log of a SQL editor with a completion model. Never overwrites a file."""
    from fim_core.demo.export import write_export

    require_free(output)
    write_export(output, rows=rows, seed=seed)
    typer.echo(f"{rows:,} rows in {output}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo-data")(demo_data)
