"""Folder of evaluation_report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fim_core.atomic import read_json
from fim_core.errors import FimError


@dataclass(frozen=True)
class ReportFolder:
    """Files of an evaluation report."""

    path: Path

    @property
    def report(self) -> Path:
        """All figures."""
        return self.path / "report.json"

    @property
    def predictions(self) -> Path:
        """One row for each held-out row, with its completions and measures."""
        return self.path / "predictions.parquet"

    @property
    def page(self) -> Path:
        """The report as a page, rendered from `report`; it can be written again at any time."""
        return self.path / "report.html"

    def read(self) -> dict[str, Any]:
        """All figures (see `fim_core.evaluation.report.build_report`).

        Raises:
            FimError: the report is missing.
            DamagedFile: it cannot be read.
        """
        try:
            return read_json(self.report)
        except FileNotFoundError as error:
            raise FimError(
                f"There is no evaluation report in {self.path}. Materialize evaluation_report first."
            ) from error
