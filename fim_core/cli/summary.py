"""`fim summary`: a finished run in one table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fim_core.champion.registry import decisions
from fim_core.cli.champion import reasons
from fim_core.config import load_experiment
from fim_core.store import Artifact, Store

_HEADLINE = {
    "exact_match": "exact match",
    "exact_match_sql": "exact match, SQL tokens",
    "edit_similarity": "edit similarity",
    "parses": "parses",
}

Config = Annotated[Path, typer.Argument(help="Experiment file.", envvar="FIM_EXPERIMENT")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("summary")(summary)


def summary(config: Config) -> None:
    """Print row counts, training and evaluation figures, the gate's decision and where the artifacts are."""
    from rich.console import Console
    from rich.table import Table

    from fim_core.evaluation.page import latency_sentence, shown_sentence
    from fim_core.folders.report import ReportFolder
    from fim_core.pipeline import STAGES

    experiment = load_experiment(config)
    store = Store(experiment.storage)
    artifacts = {stage.asset: store.current(stage.asset, experiment.name) for stage in STAGES[:5]}
    table = Table(title=f"Experiment {experiment.name}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in _lines(artifacts):
        table.add_row(label, value)
    report = ReportFolder(artifacts["evaluation_report"].path).read()
    for label, sentence in (("shown", shown_sentence(report)), ("latency", latency_sentence(report))):
        if sentence:
            table.add_row(label, sentence)
    table.add_row("champion", _champion(store, experiment.name, artifacts["trained_checkpoint"]))
    table.add_row("gate", _gate(store, experiment.name, artifacts["trained_checkpoint"]))
    console = Console()
    console.print(table)
    for artifact in artifacts.values():
        console.print(f"  {artifact.asset:<20} {artifact.path}", soft_wrap=True, highlight=False)
    console.print("Open the UI with `make ui` and go to http://127.0.0.1:3000 to see these runs.", highlight=False)


def _lines(artifacts: dict[str, Artifact]) -> Iterator[tuple[str, str]]:
    prompts, tokens = artifacts["fim_prompts"].counts, artifacts["tokenized_dataset"].counts
    training, report = artifacts["trained_checkpoint"].counts, artifacts["evaluation_report"].counts
    yield from row_lines(prompts, tokens)
    yield from feedback_lines(prompts)
    yield "tokens", f"{tokens['tokens']:,}, of which {tokens['trained_tokens']:,} are trained on"
    yield (
        "packing",
        f"{training['packing']}: {training['tokens']:,} tokens as {training['distinct_tokens']:,} distinct ones in "
        f"{training['packs']:,} packs",
    )
    yield "optimizer steps", f"{training['steps']:,}, on average {_mean_step(training)}"
    yield "held-out loss", f"{_number(training['loss_before'])} before, {_number(training['loss_after'])} after"
    yield from _headline(report)


def row_lines(prompts: dict[str, Any], tokens: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and value of each row count; the counts add up.

    Args:
        prompts, tokens: counts of fim_prompts and of tokenized_dataset.
    """
    from fim_core.pipeline.accounting import RowAccount

    account = RowAccount.of(prompts, tokens)
    yield "rows in", f"{account.rows_in:,}"
    yield "kept", f"{account.kept:,} ({account.train:,} to train on, {account.eval:,} held out)"
    yield "rejected", f"{sum(account.rejected.values()):,} ({account.reasons})" if account.rejected else "none"
    if account.left_out:
        yield "left out", f"{account.left_out:,} (their group is held out, but their statement is trained on elsewhere)"
    yield "held-out groups", f"{prompts['held_out_groups']:,} of {prompts['groups']:,}"


def feedback_lines(prompts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and value of what users did with the completions, if that is known.

    Args:
        prompts: counts of fim_prompts.
    """
    # Versions that were made before there was feedback do not count it.
    if (feedback := prompts.get("feedback")) is None:
        return
    total = feedback["total"]
    counted = ", ".join(f"{total[name]:,} {name}" for name in ("accepted", "edited", "rejected"))
    shares = {
        "acceptance rate": total["acceptance"],
        "retained characters": total["retained"],
        "edit similarity of edited": total["edit_similarity"],
    }
    known = [f"{name} {value:.1%}" for name, value in shares.items() if value is not None]
    yield "feedback", "; ".join([f"{total['shown']:,} shown, of which {counted}", *known])
    # Earlier versions do not count by model.
    by_model = [
        f"{found['model']}: {found['shown']:,} shown"
        + ("" if found["acceptance"] is None else f", acceptance rate {found['acceptance']:.1%}")
        for found in feedback.get("by_model", ())
    ]
    if by_model:
        yield "feedback by model", "; ".join(by_model)


def _mean_step(training: dict[str, Any]) -> str:
    """Average size of an optimizer step."""
    rows, trained, packs = (training[key] / max(training["steps"], 1) for key in ("rows", "trained_tokens", "packs"))
    return f"{rows:,.1f} rows, {trained:,.0f} trained tokens, {packs:,.1f} packs"


def _headline(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from fim_core.evaluation.predictor_names import TITLES

    for metric, title in _HEADLINE.items():
        figure = report["metrics"].get(metric)
        if figure is None or figure["value"] is None:
            continue
        others = ", ".join(
            f"{TITLES[name]} {values[metric]:.1%}"
            for name, values in report["others"].items()
            if values.get(metric) is not None
        )
        interval = f"{figure['low']:.1%} to {figure['high']:.1%}"
        yield title, f"{figure['value']:.1%} ({interval}) on {figure['n']:,} held-out rows; {others}"


def _champion(store: Store, experiment: str, checkpoint: Artifact) -> str:
    champion = store.find_current("champion_model", experiment)
    if champion is None:
        return "none yet; `fim champion show` gives the reasons"
    if champion.manifest["inputs"]["trained_checkpoint"] == checkpoint.version:
        return "this model"
    return "an earlier model; `fim champion show` gives the reasons"


def _gate(store: Store, experiment: str, checkpoint: Artifact) -> str:
    """Reasons of the gate's last decision on a checkpoint."""
    about = [found for found in decisions(store, experiment) if found.counts["candidate"] == checkpoint.version]
    return "\n".join(reasons(about[-1])) if about else "not decided yet"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
