"""The report for people: as a self-contained HTML page, and as Markdown with the pictures inline."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fim_core import charts
from fim_core.atomic import replacing
from fim_core.confidence.fit import FEWEST
from fim_core.evaluation.formatting import show_difference, show_figure, show_with_unit
from fim_core.evaluation.page.background import Background
from fim_core.evaluation.predictor_names import BASE, CHAMPION, EMPTY, MODEL, NOTES, TITLES
from fim_core.evaluation.selection import SIMILAR
from fim_core.evaluation.verdicts import sentences, verdict
from fim_core.folders.report import ReportFolder
from fim_core.markdown import escaped, fenced, picture
from fim_core.metrics.latency import LATENCIES
from fim_core.metrics.registry import METRICS

_HTML, _PARTS = "report.html.tmpl", ("report", "slices", "examples")
_WIDE = (860, 170)

_COLOURS = {MODEL: "model", BASE: "base", CHAMPION: "champion", EMPTY: "empty"}
"""Style classes of bars; the other constants are `constant0` and `constant1`."""


def write_page(folder: Path, background: Background | None = None) -> None:
    """Write the HTML page of the report in a folder, unless the same page is there already.

    Styles and SVG plots are inline; nothing is loaded from elsewhere.

    Args:
        folder: folder of the report.
        background: what the page shows in addition to the report. Default: nothing.
    """
    files = ReportFolder(folder)
    text = render_page(files.read(), background)
    if _content(files.page) != text:
        with replacing(files.page, make_folder=False) as scratch:
            scratch.write_text(text, encoding="utf-8")


def _content(page: Path) -> str | None:
    try:
        return page.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def render_page(report: Mapping[str, Any], background: Background | None = None) -> str:
    """Render the page as HTML. All text from rows is escaped."""
    return _environment(autoescape=True).get_template(_HTML).render(_context(report, background or Background()))


def render_markdown(report: Mapping[str, Any], background: Background | None = None) -> dict[str, str]:
    """Render parts of the report as Markdown, with the pictures in the text itself. All text from rows is escaped.

    Returns:
        `report`: verdict, main figures, gate, versions and loss curve; `slices`: figures by TYPE and length; `examples`,
        if the report has their texts.
    """
    environment = _environment(autoescape=False)
    context = _context(report, background or Background())
    parts = {name: environment.get_template(f"{name}.md.tmpl").render(context) for name in _PARTS}
    return {name: text for name, text in parts.items() if text.strip()}


@cache
def _environment(*, autoescape: bool) -> Environment:
    """The environment of the templates, which keeps them compiled."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
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
        "inline": lambda svg: Markup(svg.replace(" xmlns='http://www.w3.org/2000/svg'", "")),
        "picture": picture,
        "escaped": escaped,
        "fenced": fenced,
    }
    return environment


def _context(report: Mapping[str, Any], background: Background) -> dict[str, Any]:
    predictors = by_predictor(report)
    constants = [name for name in predictors if name not in _COLOURS]
    reported = [metric for metric in METRICS.values() if metric.name in report["metrics"]]
    headline = [m for m in reported if m.headline and report["metrics"][m.name]["value"] is not None]
    return {
        "report": report,
        "background": background,
        "metrics": reported,
        "headline": headline,
        "sliced": [metric for metric in headline if metric.by_slice],
        "predictors": predictors,
        "colours": _COLOURS | {name: f"constant{place}" for place, name in enumerate(constants)},
        "sentences": sentences(report),
        "plotted": [metric for metric in headline if metric.unit == "share"],
        "shares": charts.interval_chart(shares(report), size=(_WIDE[0], 0)),
        "losses": charts.line_chart(
            {label: charts.Line(points) for label, points in background.losses.items()},
            below="optimizer step",
            size=_WIDE,
        ),
        "trend": charts.line_chart(
            background.trend(report["experiment"]), below="version", whole=True, percent=True, size=_WIDE
        ),
        "shown": shown_sentence(report),
        "latency": latency_sentence(report),
        "risk_coverage": charts.line_chart(
            _risk_coverage(report), below="% of completions shown", percent=True, size=_WIDE
        ),
        "own_versions": [v for v in background.versions if v.experiment == report["experiment"]],
    }


def shares(report: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """The headline metrics of the model that are shares, by title: value, low, high."""
    return {
        metric.title: (figure["value"], figure["low"], figure["high"])
        for metric in METRICS.values()
        if metric.headline
        and metric.unit == "share"
        and (figure := report["metrics"].get(metric.name, {})).get("value") is not None
    }


def shown_sentence(report: Mapping[str, Any]) -> str:
    """What the completion filter does, or why there is none; empty for a report without one, such as those of earlier code."""
    show = report.get("show")
    if not show:
        return ""
    if not show.get("curves"):
        reason = show.get("reason") or "`evaluation.show` is null"
        return f"There is no completion filter: {reason}. Editors show every completion that is not empty."
    # Reports of earlier code have these figures in the metrics only, which were of the same rows.
    of_rows = show.get("shown") or {name: figure["value"] for name, figure in report["metrics"].items()}
    figures = {
        name: show_figure(of_rows[name], "share") for name in ("wrong_hidden", "correct_hidden", "shown_precision")
    }
    measured_on = show["measured_on"]
    return (
        f"The completion filter hides {figures['wrong_hidden']} of the wrong completions and {figures['correct_hidden']} of "
        f"the correct ones. Of the completions that are shown, {figures['shown_precision']} are "
        f"correct; without the filter, {show_figure(show['curves']['correct'][-1]['precision'], 'share')}. Measured on "
        f"{measured_on['rows']} completions in {measured_on['groups']} groups that the filter was not fitted to."
        + _of_feedback(show.get("feedback"))
    )


def _of_feedback(feedback: Mapping[str, Any] | None) -> str:
    """Whether users' verdicts are part of the filter; empty without feedback."""
    if feedback is None:
        return ""
    fitted, measured = (
        f"accepted {feedback[half]['accepted']} and rejected {feedback[half]['rejected']}"
        for half in ("fitted_to", "measured_on")
    )
    if feedback["used"]:
        return (
            f" Users had {fitted} of the completions that it was fitted to, and {measured} of those that it was measured on. "
            f"The metric {METRICS['shown_precision'].title!r} does not count the rejected ones."
        )
    return (
        f" Rejected completions are not part of it: users had {fitted} of what the model still writes, and {FEWEST} of each are "
        "needed."
    )


def latency_sentence(report: Mapping[str, Any]) -> str:
    """How long completions take, and where that was measured; empty if it was not."""
    if not (measured := report.get("latency")):
        return ""
    figures = [
        f"{show_with_unit(value, 'ms')} ({LATENCIES[name].title.split()[-1]})"
        for name, value in measured["figures"].items()
    ]
    return (
        f"The model finishes a completion in {' and '.join(figures)}: wall time on {measured['device']}, {measured['rows']} "
        f"held-out rows one by one, nothing cached, at most {measured['max_tokens']} tokens. Wall time differs from run to run."
    )


def _risk_coverage(report: Mapping[str, Any]) -> dict[str, charts.Line]:
    labels = {"correct": "correct", "similar": f"edit similarity ≥ {SIMILAR}"}
    return {
        labels[name]: charts.Line(
            [(100 * point["coverage"], point["precision"]) for point in points],
            [(point["low"], point["high"]) for point in points] if name == "correct" else (),
        )
        for name, points in report.get("show", {}).get("curves", {}).items()
    }


def by_predictor(part: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a report, or of one slice of it, by predictor, in the order of predictor_names.py."""
    figures = {MODEL: part["metrics"]} | {name: other["metrics"] for name, other in part["others"].items()}
    return {name: figures[name] for name in TITLES if name in figures}
