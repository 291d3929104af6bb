"""Metadata of `champion_model`."""

from __future__ import annotations

from typing import Any

import dagster as dg

from fim_assets.metadata.tables import table
from fim_assets.metadata.trained_checkpoint import how_to_load
from fim_core.atomic import read_json
from fim_core.champion.registry import champion_weights
from fim_core.config import Experiment
from fim_core.folders.decision import DecisionFolder
from fim_core.folders.report import ReportFolder
from fim_core.store import Artifact, Store

_HOLDS = {True: "passed", False: "failed", None: "not applicable"}


def describe(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """The gate's decision and its reasons."""
    decision = read_json(DecisionFolder(artifact.path).decision)
    rules = [
        {"result": _HOLDS[rule["holds"]], "reason": rule["reason"], "rule": rule["rule"], "metric": rule["metric"]}
        for rule in decision["results"]
    ]
    return {
        "promoted": decision["promote"],
        **_report(artifact, experiment, store),
        "candidate": decision["candidate"],
        "previous_champion": decision["champion_before"] or "none",
        "gate": table(dict.fromkeys(("result", "reason", "rule", "metric"), "string"), rules),
        "smallest_detectable_gain": decision["power"]["sentence"],
        **(_of_champion(artifact, experiment) if decision["promote"] else {}),
    }


def _report(artifact: Artifact, experiment: Experiment, store: Store) -> dict[str, Any]:
    """The report that the gate has read, with its verdict."""
    from fim_core.evaluation.page import render_markdown
    from fim_core.pipeline.report_background import background_of

    report = store.find("evaluation_report", artifact.manifest["inputs"]["evaluation_report"])
    if report is None:
        return {}
    figures = ReportFolder(report.path).read()
    return {"report": dg.MetadataValue.md(render_markdown(figures, background_of(report, experiment, store))["report"])}


def _of_champion(artifact: Artifact, experiment: Experiment) -> dict[str, Any]:
    places = [target.place for target in experiment.publish]
    published = {"published_to": dg.MetadataValue.md("\n".join(f"- {place}" for place in places))} if places else {}
    return {"load": dg.MetadataValue.md(how_to_load(champion_weights(artifact)))} | published
