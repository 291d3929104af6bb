"""The gate's decision on a candidate in its store: the rules, and whether the candidate was rolled back before."""

from __future__ import annotations

from fim_core.champion.gate import Decision, decide, refuse
from fim_core.champion.registry import champion_before, withdrawn
from fim_core.config import Experiment
from fim_core.store import Artifact, Store


def decide_on(report: Artifact, experiment: Experiment, store: Store) -> Decision:
    """Decide whether the checkpoint that a report is about replaces the champion.

    Raises:
        FimError: the report lacks the champion's figures.
    """
    candidate = report.manifest["inputs"]["trained_checkpoint"]
    previous = champion_before(store, experiment.name, candidate)
    decision = decide(report.path, experiment.gate, has_champion=previous is not None)
    if candidate in withdrawn(store, experiment.name):
        return refuse(
            decision,
            "This checkpoint was champion and was rolled back manually; only `fim champion rollback --version` restores it.",
        )
    return decision
