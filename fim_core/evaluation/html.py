"""The report as one page that needs nothing else: figures, plots, examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fim_core.evaluation.metrics.registry import METRICS
from fim_core.evaluation.names import BASE, CHAMPION, MODEL, NOTES, TITLES
from fim_core.evaluation.words import sentences, show_difference, show_figure, standing

PAGE = "report.html"
_TEMPLATE = "report.html.tmpl"

_COLOURS = {MODEL: "model", BASE: "base", CHAMPION: "champion"}
"""Style classes of bars; the constants share shades of grey."""


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
        "difference": show_difference,
        "standing": standing,
        "name": TITLES.__getitem__,
        "note": lambda key: NOTES.get(key, ""),
        "predictors": by_predictor,
    }
    predictors = by_predictor(report)
    constants = [name for name in predictors if name not in _COLOURS]
    reported = [metric for metric in METRICS if metric.name in report["metrics"]]
    headline = [m for m in reported if m.headline and report["metrics"][m.name]["value"] is not None]
    return environment.get_template(_TEMPLATE).render(
        report=report,
        metrics=reported,
        headline=headline,
        # Whether a completion should be empty is mostly what TYPE and length say.
        sliced=[metric for metric in headline if not metric.name.startswith("abstention")],
        predictors=predictors,
        colours=_COLOURS | {name: f"constant{place}" for place, name in enumerate(constants)},
        sentences=sentences(report),
        plotted=[metric for metric in headline if metric.unit == "share"],
    )


def by_predictor(part: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a report, or of a slice of it, by predictor in the order of names.py."""
    figures = {MODEL: part["metrics"]} | {name: other["metrics"] for name, other in part["others"].items()}
    return {name: figures[name] for name in TITLES if name in figures}
