"""`fim export`: a checkpoint for llama.cpp and Ollama, or as a folder of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fim_core.cli.model import CheckpointOption, ExperimentOption, chosen_checkpoint
from fim_core.errors import FimError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export)


def export(
    format: Annotated[
        Literal["gguf", "safetensors"],
        typer.Option(help="gguf: a file for llama.cpp and Ollama; safetensors: a folder in bfloat16."),
    ],
    quantize: Annotated[
        Literal["q8_0", "q4_k_m"] | None,
        typer.Option(help="Quantize a GGUF file; without it, its weights are float16."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="New folder, or an earlier export. Default: ./EXPERIMENT-VERSION, with the number format for gguf."
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    experiment: ExperimentOption = None,
) -> None:
    """Export the model that `fim serve` serves, for other programs."""
    from fim_core.exporting.export import export_gguf, export_safetensors

    if quantize is not None and format != "gguf":
        raise FimError("--quantize is for --format gguf. Leave it out, or export gguf.")
    folder = chosen_checkpoint(checkpoint, experiment)
    if format == "gguf":
        done = export_gguf(folder, output, quantization=quantize)
    else:
        done = export_safetensors(folder, output)
    for notice in done.notices:
        typer.echo(f"fim: {notice}", err=True)
    size = sum(path.stat().st_size for path in done.weights)
    typer.echo(f"Exported {folder} to {done.folder} ({size / 1e6:,.1f} MB of weights).")
