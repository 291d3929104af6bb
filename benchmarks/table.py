"""The headline figures of an evaluation report as a Markdown table.

    python -m benchmarks.table FOLDER

FOLDER is the folder of a report, such as `.fim/evaluation_report/current`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fim_core.evaluation.formatting import show_figure
from fim_core.evaluation.page import by_predictor
from fim_core.evaluation.predictor_names import TITLES
from fim_core.folders.report import ReportFolder
from fim_core.metrics.registry import METRICS


def main() -> None:
    """Read a report and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    report = ReportFolder(parser.parse_args().folder).read()
    predictors = by_predictor(report)
    head = ["", *(TITLES[name] for name in predictors), "rows"]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for metric in METRICS.values():
        if metric.headline and metric.name in report["metrics"]:
            cells = [_cell(figures.get(metric.name), metric.unit) for figures in predictors.values()]
            unit = "" if metric.unit == "share" else f", {metric.unit}"
            lines.append([metric.title + unit, *cells, str(report["metrics"][metric.name]["n"])])
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _cell(figure: Mapping[str, Any] | None, unit: str) -> str:
    if figure is None or figure["value"] is None:
        return "–" if figure is None else "not finite"
    value, low, high = (show_figure(figure[key], unit) for key in ("value", "low", "high"))
    return f"{value} ({low} – {high})"


if __name__ == "__main__":
    main()
