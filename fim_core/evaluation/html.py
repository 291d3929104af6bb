"""The report as one page that needs nothing else: figures, plots, examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fim_core.evaluation.metrics.registry import METRICS

PAGE = "report.html"
_TEMPLATE = "report.html.tmpl"

NAMES = {
    "model": "this model",
    "champion": "champion",
    "empty": "empty completion",
    "most_frequent": "most frequent of the TYPE",
}
"""What predictors are called in front of people."""


def write_page(output: Path, report: Mapping[str, Any]) -> None:
    """Write `report.html` for a report, with inline styles and SVG plots; nothing is loaded from elsewhere."""
    (output / PAGE).write_text(render_page(report), encoding="utf-8")


def render_page(report: Mapping[str, Any]) -> str:
    """The page as text. Everything from rows is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": show_figure, "name": lambda key: NAMES.get(key, key.replace("_", " "))}
    others = report["baselines"] | ({"champion": report["champion"]["metrics"]} if report["champion"] else {})
    predictors = {"model": report["metrics"], **others}
    reported = [metric for metric in METRICS if metric.name in report["metrics"]]
    headline = [m for m in reported if m.headline and report["metrics"][m.name]["value"] is not None]
    return environment.get_template(_TEMPLATE).render(
        report=report,
        metrics=reported,
        headline=headline,
        # Whether a completion should be empty is mostly what TYPE and length say.
        sliced=[metric for metric in headline if not metric.name.startswith("abstention")],
        predictors=predictors,
        plotted=[metric for metric in headline if metric.unit == "share"],
    )


def show_figure(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A figure for people: shares in percent, others with three digits."""
    if value is None:
        return "not finite"
    sign = "+" if signed else ""
    return f"{value:{sign}.1%}" if unit == "share" else f"{value:{sign}.3g}"
