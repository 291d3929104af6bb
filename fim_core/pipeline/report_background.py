"""What the page of a report shows of the rest of its store."""

from __future__ import annotations

from dataclasses import asdict

from fim_core.champion.decision import decide_on
from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.evaluation.page import write_page
from fim_core.evaluation.page.background import Background, Version
from fim_core.evaluation.power import METRIC
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.folders.report import ReportFolder
from fim_core.store import Artifact, Store
from fim_core.training.history import curve, read_events

_MOST_VERSIONS = 30


def write_report_page(report: Artifact, experiment: Experiment, store: Store) -> None:
    """Write the page of a report, or bring it up to date."""
    write_page(report.path, background_of(report, experiment, store))


def background_of(report: Artifact, experiment: Experiment, store: Store) -> Background:
    """The gate's verdict on a report, the reports before it, and the loss curve of its checkpoint."""
    checkpoint = store.find("trained_checkpoint", report.manifest["inputs"]["trained_checkpoint"])
    events = read_events(CheckpointFolder(checkpoint.path).events) if checkpoint else []
    return Background(
        gate=asdict(decide_on(report, experiment, store)),
        versions=_versions(report, store),
        losses={"training": curve(events, "step", "loss"), "held-out": curve(events, "eval", "loss")},
    )


def _versions(report: Artifact, store: Store) -> list[Version]:
    promoted: dict[str, bool] = {}
    for decided in store.versions("champion_model"):
        promoted[decided.manifest["inputs"]["evaluation_report"]] = decided.counts["promote"]
    reports = store.versions("evaluation_report")
    until = [r.version for r in reports].index(report.version) + 1
    found = []
    for place, artifact in list(enumerate(reports[:until], 1))[-_MOST_VERSIONS:]:
        if (figure := _figure(artifact)) is not None:
            manifest = artifact.manifest
            found.append(
                Version(
                    artifact.version,
                    manifest["experiment"],
                    place,
                    manifest["created"][:16].replace("T", " "),
                    figure,
                    promoted.get(artifact.version),
                )
            )
    return found


def _figure(artifact: Artifact) -> dict[str, float] | None:
    """The main metric of a report; None if it has none, or if the report is damaged, which `fim verify` reports."""
    try:
        figure = ReportFolder(artifact.path).read()["metrics"].get(METRIC)
    except FimError:
        return None
    return figure if figure and figure["value"] is not None else None
