"""The model registry: which model of an experiment is the champion, which were before, and rollback."""

from __future__ import annotations

from pathlib import Path

from fim_core.errors import FimError
from fim_core.folders.decision import DecisionFolder
from fim_core.integrity import read_sealed, write_sealed
from fim_core.store import Artifact, Store

_WITHDRAWN = "withdrawn"


def champion(store: Store, experiment: str) -> Artifact | None:
    """The champion of an experiment, or None; see `champion_weights`.

    Raises:
        DamagedFile: its manifest is damaged.
    """
    return store.find_current("champion_model", experiment)


def decisions(store: Store, experiment: str) -> list[Artifact]:
    """Every decision about a candidate of an experiment, oldest first; `counts["promote"]` tells whether it was promoted."""
    return [a for a in store.versions("champion_model") if a.manifest["experiment"] == experiment]


def promoted(store: Store, experiment: str) -> list[Artifact]:
    """Every model that an experiment has promoted, oldest first, including the present champion."""
    return [decided for decided in decisions(store, experiment) if decided.counts["promote"]]


def champion_before(store: Store, experiment: str, candidate: str) -> Artifact | None:
    """The champion to compare a candidate with; for the present champion, the one that it replaced."""
    current = champion(store, experiment)
    if current is not None and current.counts["candidate"] == candidate:
        return store.find("champion_model", current.manifest["inputs"]["champion"])
    return current


def roll_back(store: Store, experiment: str, version: str | None = None) -> Artifact:
    """Make an earlier champion the champion again: the previous one, or a given version.

    The checkpoint that is rolled back is not promoted again automatically, whatever the gate finds, so that the next
    scheduled run does not undo the rollback.

    Raises:
        FimError: there is no champion, or no such earlier one.
    """
    current = champion(store, experiment)
    if current is None:
        raise FimError(f"Experiment {experiment} has no champion to roll back.")
    target = store.find("champion_model", version or current.manifest["inputs"]["champion"])
    if target is None or not target.counts["promote"]:
        known = [a.version for a in promoted(store, experiment) if a != current]
        raise FimError(f"There is no such earlier champion. Known: {', '.join(known) or 'none'}.")
    rolled_back = withdrawn(store, experiment) | {current.counts["candidate"]}
    _write_withdrawn(store, experiment, rolled_back - {target.counts["candidate"]})
    store.use(target, experiment)
    return target


def withdrawn(store: Store, experiment: str) -> set[str]:
    """The checkpoints of an experiment that were rolled back and may not be promoted automatically.

    Raises:
        DamagedFile: the list of them is damaged.
    """
    try:
        return set(read_sealed(withdrawn_file(store, experiment))["checkpoints"])
    except FileNotFoundError:
        return set()


def _write_withdrawn(store: Store, experiment: str, checkpoints: set[str]) -> None:
    store.folder("champion_model", _WITHDRAWN)
    write_sealed(withdrawn_file(store, experiment), {"checkpoints": sorted(checkpoints)})


def withdrawn_file(store: Store, experiment: str) -> Path:
    """The file that lists the checkpoints of an experiment that were rolled back."""
    return store.root / "champion_model" / _WITHDRAWN / f"{experiment}.json"


def champion_weights(champion: Artifact) -> Path:
    """The folder of a champion's weights, in the format of transformers."""
    return DecisionFolder(champion.path).weights(champion.manifest["experiment"])
