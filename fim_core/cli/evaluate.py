"""`fim evaluate`: evaluation of a checkpoint on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate)


def evaluate(
    config: Annotated[Path, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")],
    force: Annotated[bool, typer.Option(help="Make every asset again, even if nothing has changed.")] = False,
) -> None:
    """Evaluate an experiment's checkpoint on held-out rows; missing assets are made first."""
    from fim_core.cli.pipeline import open_experiment, run_pipeline
    from fim_core.folders.report import ReportFolder

    experiment = open_experiment(config)
    report = run_pipeline(experiment, until="evaluation_report", force=force)["evaluation_report"].artifact.path
    print_figures(ReportFolder(report).read())
    typer.echo(f"Report: {ReportFolder(report).page}")
    typer.echo(f"To submit it to the gate: fim champion promote {config}")


def print_figures(report: Mapping[str, Any]) -> None:
    """Print the headline metrics of all predictors, then the comparisons in words."""
    from fim_core.evaluation.formatting import show_figure
    from fim_core.evaluation.page import by_predictor, latency_sentence
    from fim_core.evaluation.predictor_names import TITLES
    from fim_core.evaluation.verdicts import sentences
    from fim_core.metrics.registry import METRICS

    predictors = by_predictor(report)
    counts = report["counts"]
    table = Table(title=f"{report['experiment']}: {counts['evaluated']} held-out rows in {counts['groups']} groups")
    table.add_column("Metric")
    for name in predictors:
        table.add_column(TITLES[name], justify="right")
    for metric in METRICS.values():
        if metric.headline and metric.name in report["metrics"]:
            own = report["metrics"][metric.name]
            cells = [
                "–" if (figure := figures.get(metric.name)) is None else show_figure(figure["value"], metric.unit)
                for figures in predictors.values()
            ]
            if own["value"] is not None:
                cells[0] += "\n" + " – ".join(show_figure(own[bound], metric.unit) for bound in ("low", "high"))
            table.add_row(metric.title, *cells)
    Console().print(table)
    for sentence in (*sentences(report), report["power"]["sentence"], latency_sentence(report)):
        if sentence:
            typer.echo(sentence)
