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

_COLOURS = {"model": "model", "champion": "champion"}
"""Style classes of bars; the baselines share shades of grey."""


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
    environment.filters |= {
        "figure": show_figure,
        "name": lambda key: NAMES.get(key, key.replace("_", " ")),
        "predictors": by_predictor,
    }
    predictors = by_predictor(report)
    baselines = [name for name in predictors if name not in _COLOURS]
    reported = [metric for metric in METRICS if metric.name in report["metrics"]]
    headline = [m for m in reported if m.headline and report["metrics"][m.name]["value"] is not None]
    return environment.get_template(_TEMPLATE).render(
        report=report,
        metrics=reported,
        headline=headline,
        # Whether a completion should be empty is mostly what TYPE and length say.
        sliced=[metric for metric in headline if not metric.name.startswith("abstention")],
        predictors=predictors,
        colours=_COLOURS | {name: f"base{place % 4}" for place, name in enumerate(baselines)},
        plotted=[metric for metric in headline if metric.unit == "share"],
    )


def by_predictor(part: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a report, or of a slice of it, by predictor: the model, the champion if any, the baselines."""
    champion = {"champion": part["champion"]["metrics"]} if part["champion"] else {}
    return {"model": part["metrics"], **champion, **part["baselines"]}


def show_figure(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A figure for people: shares in percent, others with three digits."""
    if value is None:
        return "not finite"
    sign = "+" if signed else ""
    return f"{value:{sign}.1%}" if unit == "share" else f"{value:{sign}.3g}"
