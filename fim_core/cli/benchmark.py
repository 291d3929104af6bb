"""`fim benchmark`: an executable SQL infilling benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fim_core.cli.model import CheckpointOption, ExperimentOption, chosen_checkpoint


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(
        help="Build an executable SQL infilling benchmark and run models on it.", no_args_is_help=True
    )
    commands.command("build")(build)
    commands.command("run")(run)
    app.add_typer(commands, name="benchmark")


def build(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the benchmark to.")],
    items_per_kind: Annotated[int, typer.Option(min=1, help="Holes of each of the five kinds.")] = 60,
    seed: Annotated[int, typer.Option(help="The same seed gives the same benchmark.")] = 0,
) -> None:
    """Build a benchmark of queries that return rows, with holes of five kinds."""
    from fim_core.benchmark.build import build_benchmark

    counts = build_benchmark(output, items_per_kind=items_per_kind, seed=seed)
    typer.echo(f"{sum(counts.values())} items in {output}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))


def run(
    folder: Annotated[Path, typer.Argument(help="Benchmark folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")],
    checkpoint: CheckpointOption = None,
    experiment: ExperimentOption = None,
    champion: Annotated[
        Path | None, typer.Option(help="Checkpoint folder of a second model, compared item by item.")
    ] = None,
    training: Annotated[
        Path | None,
        typer.Option(help="fim_prompts folder that the model was trained on; items found in it are left out."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens per completion.")] = 96,
) -> None:
    """Complete a benchmark's items with a checkpoint; print the figures and write a report."""
    from fim_core.benchmark.contamination import training_documents
    from fim_core.benchmark.run import run_benchmark
    from fim_core.cli.evaluate import print_figures
    from fim_core.folders.report import ReportFolder

    documents = training_documents(training) if training else ()
    report = run_benchmark(
        folder,
        chosen_checkpoint(checkpoint, experiment),
        output,
        champion=champion,
        training=documents,
        max_new_tokens=max_new_tokens,
    )
    print_figures(report)
    if training:
        typer.echo(f"Items left out because they are in the training set: {report['counts']['contaminated']}.")
    typer.echo(f"Report: {ReportFolder(output).page}")
