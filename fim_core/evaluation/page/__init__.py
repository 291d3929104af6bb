"""The report as a self-contained HTML page: figures, plots and examples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fim_core.atomic import replacing
from fim_core.evaluation.formatting import show_difference, show_figure
from fim_core.evaluation.predictor_names import BASE, CHAMPION, MODEL, NOTES, TITLES
from fim_core.evaluation.verdicts import sentences, verdict
from fim_core.folders.report import ReportFolder
from fim_core.metrics.registry import METRICS

_TEMPLATE = "report.html.tmpl"
_GENERATOR = re.compile(r'<meta name="generator" content="(?P<version>[^"]*)">')
_HEAD_CHARACTERS = 1000

_COLOURS = {MODEL: "model", BASE: "base", CHAMPION: "champion"}
"""Style classes of bars; constants get shades of grey."""


def write_page(folder: Path, version: str = "") -> None:
    """Write the page of the report in a folder, unless this version of the page is there already.

    Styles and SVG plots are inline; nothing is loaded from elsewhere.

    Args:
        folder: folder of the report.
        version: version of the code that renders the page.
    """
    files = ReportFolder(folder)
    if _version_of(files.page) != version:
        text = render_page(files.read(), version)
        with replacing(files.page, make_folder=False) as scratch:
            scratch.write_text(text, encoding="utf-8")


def _version_of(page: Path) -> str | None:
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            found = _GENERATOR.search(file.read(_HEAD_CHARACTERS))
    except FileNotFoundError:
        return None
    return found["version"] if found else None


def render_page(report: Mapping[str, Any], version: str = "") -> str:
    """Render the page as HTML. All text from rows is escaped."""
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
        "verdict": verdict,
        "name": TITLES.__getitem__,
        "note": lambda key: NOTES.get(key, ""),
        "predictors": by_predictor,
    }
    predictors = by_predictor(report)
    constants = [name for name in predictors if name not in _COLOURS]
    reported = [metric for metric in METRICS.values() if metric.name in report["metrics"]]
    headline = [m for m in reported if m.headline and report["metrics"][m.name]["value"] is not None]
    return environment.get_template(_TEMPLATE).render(
        report=report,
        version=version,
        metrics=reported,
        headline=headline,
        sliced=[metric for metric in headline if metric.by_slice],
        predictors=predictors,
        colours=_COLOURS | {name: f"constant{place}" for place, name in enumerate(constants)},
        sentences=sentences(report),
        plotted=[metric for metric in headline if metric.unit == "share"],
    )


def by_predictor(part: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a report, or of one slice of it, by predictor, in the order of predictor_names.py."""
    figures = {MODEL: part["metrics"]} | {name: other["metrics"] for name, other in part["others"].items()}
    return {name: figures[name] for name in TITLES if name in figures}
