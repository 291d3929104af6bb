"""`fim estimate`: memory and time of a run, before it starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from fim_core.training.estimate.estimate import Estimate


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("estimate")(estimate)


def estimate(
    config: Annotated[Path, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")],
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Ranks of the run. Default: those of the experiment's launcher.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="Kind of GPU, for its peak rate.")] = "H100",
    gpu_memory: Annotated[str, typer.Option(help="Memory of a GPU.")] = "80GB",
    device: Annotated[
        Literal["gpu", "cpu"], typer.Option(help="cpu: estimate for this machine's main memory, in fp32.")
    ] = "gpu",
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the training rows, instead of those of the tokenized_dataset.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Number of training rows, with --tokens.")] = None,
    utilization: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Assumed share of the peak rate, for the hours.")
    ] = 0.4,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Estimate whether a run fits in memory, the longest row that does, and the hours of training.

    No weights are loaded: a training step is followed on shapes alone."""
    from fim_core.device import device_type

    os.environ.setdefault("DS_ACCELERATOR", device_type())  # else DeepSpeed warns that it finds no GPU
    from fim_core.cli.pipeline import open_experiment
    from fim_core.errors import FimError
    from fim_core.training.estimate.estimate import Estimator
    from fim_core.training.estimate.machine import Machine, parse_memory
    from fim_core.training.estimate.workload import training_rows

    if rows is not None and tokens is None:
        raise FimError("--rows needs --tokens, the tokens of these rows.")
    experiment = open_experiment(config)
    ranks = gpus or experiment.launcher.world_size()
    if ranks % experiment.sequence_parallel_size:
        raise FimError(
            f"sequence_parallel_size is {experiment.sequence_parallel_size}, and {ranks} ranks are not a multiple of it. Give "
            "another number with --gpus."
        )
    if rows is not None and tokens is not None and not rows <= tokens <= rows * experiment.data.max_length:
        raise FimError(
            f"--tokens {tokens:,} are not possible for --rows {rows:,}: a row has 1 to {experiment.data.max_length:,} tokens "
            "(data.max_length)."
        )
    machine = Machine.this_cpu(ranks) if device == "cpu" else Machine.gpu(gpu, parse_memory(gpu_memory))
    estimator = Estimator(experiment, machine, ranks)
    trained_on = training_rows(experiment) if tokens is None else None
    workload = estimator.assumed_workload(rows, tokens) if trained_on is None else estimator.workload_of(trained_on)
    found = estimator.estimate(workload, utilization)
    if as_json:
        typer.echo(json.dumps(figures(found), indent=2))
    else:
        _print(found, utilization)


def figures(found: Estimate) -> dict[str, Any]:
    """The estimate as JSON: bytes, tokens and hours."""
    change = found.change
    return {
        "ranks": found.ranks,
        "memory": found.memory.parts,
        "total": found.memory.total,
        "available": found.machine.memory,
        "peak_during": found.memory.during,
        "host_memory": found.memory.host,
        "fits": found.fits,
        "pack": {"tokens": found.workload.pack.tokens, "targets": found.workload.pack.targets},
        "longest_row": found.workload.longest_row,
        "longest_row_that_fits": found.longest_row,
        "change": None if change is None else change.options,
        "rows": found.workload.rows,
        "tokens": found.workload.tokens,
        "operations": found.workload.operations,
        "hours": found.hours,
    }


def _print(found: Estimate, utilization: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from fim_core.training.estimate.machine import GIB, in_gib

    ranks = f"each of {found.ranks} ranks" if found.ranks > 1 else "the rank"
    title = f"{found.experiment.name}: memory of {ranks} on {found.machine.name}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for part, size in found.memory.parts.items():
        table.add_row(part, f"{size / GIB:,.2f} GiB")
    table.add_section()
    table.add_row(f"peak, in the {found.memory.during}", in_gib(found.memory.total))
    if found.memory.host:
        table.add_row("and in host memory", in_gib(found.memory.host))
    console = Console()
    console.print(table)
    for line in _lines(found, utilization):
        console.print(line, soft_wrap=True, highlight=False)


def _lines(found: Estimate, utilization: float) -> Iterator[str]:
    from fim_core.training.estimate.machine import in_gib

    workload, memory, machine = found.workload, found.memory, found.machine
    room = machine.memory - memory.total
    yield (
        f"It fits: {in_gib(room)} of {in_gib(machine.memory)} are left."
        if found.fits
        else f"It does not fit: {in_gib(-room)} more than {in_gib(machine.memory)}."
    )
    yield f"Largest pack: {workload.pack.tokens:,} tokens, {workload.pack.targets:,} of them predicted."
    yield f"Longest row that fits: {found.longest_row:,} tokens." if found.longest_row else "No row fits."
    if found.change is not None:
        yield f"Smallest change that makes it fit: {found.change}."
    elif not found.fits:
        yield "No change of the options that this command tries makes it fit: use more or larger GPUs, or shorter rows."
    if found.hours is not None and workload.operations is not None:
        epochs = found.experiment.epochs or 1
        yield (
            f"Training: {found.hours:,.1f} hours for {epochs} x {workload.operations:.2e} operations, at an assumed "
            f"{utilization:.0%} of the peak rate."
        )
    for note in (*workload.notes, f"overhead is {machine.overhead_source}"):
        yield f"  {note}"
