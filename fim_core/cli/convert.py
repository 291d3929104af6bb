"""`fim convert`: export to a data set of prompts and responses."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How the data set is written."""

    DISK = "disk"
    PARQUET = "parquet"


class Order(StrEnum):
    """Order of prefix, suffix and middle in a prompt."""

    PSM = "psm"
    SPM = "spm"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("convert")(convert)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="Export: CSV, Parquet or JSON-lines file, or a folder of them; a path or s3:// URL."
        ),
    ],
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id; its chat markup and control tokens are used.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output path OUT. Default: <input>_hf_fim_dataset.")
    ] = None,
    template: Annotated[str, typer.Option(help="`chat`, `plain`, or the path of a template file.")] = "chat",
    fim_order: Annotated[Order, typer.Option(help="Prefix-suffix-middle or suffix-prefix-middle prompts.")] = Order.PSM,
    format: Annotated[
        Format, typer.Option(help="disk: a folder for load_from_disk. parquet: one file, named exactly OUT.")
    ] = Format.DISK,
    input_col: Annotated[str, typer.Option(help="Column with the editor's state, in any case.")] = "INPUT",
    output_col: Annotated[str, typer.Option(help="Column with the completion, in any case.")] = "OUTPUT",
    skip_empty_output: Annotated[bool, typer.Option("--skip-empty-output", help="Reject empty completions.")] = False,
    skip_empty_prefix: Annotated[
        bool, typer.Option("--skip-empty-prefix", help="Reject rows with nothing before the cursor.")
    ] = False,
    num_proc: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
) -> None:
    """Convert an export to finished prompts and responses, for training (data.sources: [{name_or_path: OUT}]).

    OUT.summary.json counts every row; OUT.rejected.parquet lists each rejected row with its reason.
    """
    from fim_core.convert import convert as run

    place, summary = run(
        source,
        output,
        tokenizer=tokenizer,
        template=template,
        fim_order=fim_order.value,
        format=format.value,
        input_col=input_col,
        output_col=output_col,
        skip_empty_output=skip_empty_output,
        skip_empty_prefix=skip_empty_prefix,
        num_proc=num_proc,
    )
    typer.echo(f"{summary['rows_kept']:,} of {summary['rows_in']:,} rows in {place} ({summary['repaired']:,} repaired)")
    for reason, rows in summary["rejected"].items():
        typer.echo(f"  {rows:,} rejected: {reason}")
    if not summary["rows_kept"]:
        typer.echo("No row was kept, so the data set is empty. The file of rejected rows gives the reason for each.")
    typer.echo(f"{summary['markup']} Summary and rejected rows: {place.name}.summary.json, .rejected.parquet")
