"""Stage `champion_model`: checkpoint and report → champion, or a refusal."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fim_core.champion.registry import champion_before, withdrawn
from fim_core.confidence.filter import CompletionFilter
from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.folders.decision import DecisionFolder
from fim_core.folders.report import ReportFolder
from fim_core.pipeline.stage import Build, OnEvent, Stage
from fim_core.store import Artifact, Store


def _outside(experiment: Experiment, store: Store, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    candidate = inputs["trained_checkpoint"].version
    before = champion_before(store, experiment.name, candidate)
    rolled_back = {"withdrawn": "yes"} if candidate in withdrawn(store, experiment.name) else {}
    return {"champion": before.version if before else "none"} | rolled_back


def _build(build: Build) -> dict[str, Any]:
    from fim_core.champion.decision import decide_on

    candidate, report = build.inputs["trained_checkpoint"], build.inputs["evaluation_report"]
    if report.manifest["inputs"]["trained_checkpoint"] != candidate.version:
        raise FimError(
            f"The evaluation report belongs to checkpoint {report.manifest['inputs']['trained_checkpoint']}, "
            f"not to the current one, {candidate.version}. Materialize evaluation_report first."
        )
    previous = champion_before(build.store, build.experiment.name, candidate.version)
    decision = decide_on(report, build.experiment, build.store)
    output = DecisionFolder(build.output)
    content = asdict(decision) | {
        "candidate": candidate.version,
        "champion_before": previous.version if previous else None,
    }
    output.decision.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if decision.promote:
        weights = output.weights(build.experiment.name)
        _link_tree(candidate.path, weights)
        _write_metrics(weights, report.path)
        if (completion_filter := CompletionFilter.read(report.path)) is not None:
            completion_filter.write(weights)
    return {"promote": decision.promote, "candidate": candidate.version}


def _write_metrics(weights: Path, report: Path) -> None:
    """Add the metrics of the report to the champion's model card."""
    from fim_core.pipeline.model_card import with_metrics

    card = CheckpointFolder(weights).card
    text = with_metrics(card.read_text(encoding="utf-8"), ReportFolder(report).read())
    card.unlink()  # it is a hard link; writing through it would change the checkpoint's card as well
    card.write_text(text, encoding="utf-8")


def _link_tree(source: Path, target: Path) -> None:
    """Copy a folder with hard links, so that the champion survives when its checkpoint is garbage-collected."""

    def link(src: str, dst: str) -> None:
        try:
            os.link(src, dst)
        except OSError:
            shutil.copy2(src, dst)

    shutil.copytree(source, target, copy_function=link)


def _present(artifact: Artifact, experiment: Experiment, store: Store) -> None:
    """Bring the verdict in the report's page up to date."""
    from fim_core.pipeline.report_background import write_report_page

    report = store.find("evaluation_report", artifact.manifest["inputs"]["evaluation_report"])
    if report is not None:
        write_report_page(report, experiment, store)


def _publish(experiment: Experiment, store: Store, on_event: OnEvent) -> None:
    from fim_core.publishing.publish import publish_champion

    publish_champion(experiment, store, on_event)


champion_model = Stage(
    asset="champion_model",
    upstream=("trained_checkpoint", "evaluation_report"),
    code=(__name__,),
    options=lambda experiment: {"gate": experiment.gate.model_dump(mode="json")},
    outside=_outside,
    build=_build,
    trains=False,
    present=_present,
    adopt=lambda artifact: artifact.counts["promote"],
    tables=lambda folder: {"decision": DecisionFolder(folder).decision},
    finish=_publish,
)
