"""`fim benchmark`: an executable SQL infilling benchmark, and the latency of completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from fim_core.cli.model import (
    CandidatesOption,
    CheckpointOption,
    ExperimentOption,
    ShowOption,
    chosen_checkpoint,
    load_completer,
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    commands = typer.Typer(
        help="An executable SQL infilling benchmark, and the latency of completions.", no_args_is_help=True
    )
    commands.command("build")(build)
    commands.command("run")(run)
    commands.command("latency")(latency)
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


def latency(
    config: Annotated[Path, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")],
    checkpoint: CheckpointOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out rows to complete.")] = 100,
    people: Annotated[int, typer.Option(min=1, help="People who type at once, in addition to one alone.")] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens per completion.")] = 48,
    show: ShowOption = "confident",
    candidates: CandidatesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how long editors wait for the completions of held-out rows, on this machine."""
    from fim_core.benchmark.latency import summarize, time_typing
    from fim_core.config import load_experiment
    from fim_core.evaluation.eval_set import held_out_states
    from fim_core.serving.latency import time_completions
    from fim_core.store import Store

    experiment = load_experiment(config)
    states = held_out_states(Store(experiment.storage), experiment, rows)
    completer, _ = load_completer(checkpoint, config, show, candidates)
    timings = time_completions(completer, states, max_tokens=max_tokens)
    typing = {
        number: time_typing(completer, states, people=number, max_tokens=max_tokens) for number in sorted({1, people})
    }
    found = summarize(timings, typing)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _print_latency(found)


def _print_latency(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    for kind, title in (
        ("cold", "Cold: nothing of the prompt is cached"),
        ("warm", "Warm: the last 3 characters are new"),
    ):
        table = Table("Prompt tokens", "Rows", "First text, ms", "End, ms", title=title)
        for part in found["completions"][kind]:
            table.add_row(part["tokens"], str(part["rows"]), _in_words(part["first"]), _in_words(part["end"]))
        Console().print(table)
    table = Table("People", "Rows", "Answer, ms", title="Typing: from the last key to the whole answer")
    for part in found["typing"]:
        table.add_row(str(part["people"]), str(part["rows"]), _in_words(part["answer"]))
    Console().print(table)


def _in_words(percentiles: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in percentiles.items())
