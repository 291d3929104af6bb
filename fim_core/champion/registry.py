"""The models that experiments have promoted: which one serves, which came before, and the way back."""

from __future__ import annotations

from pathlib import Path

from fim_core.errors import FimError
from fim_core.folders.decision import DecisionFolder
from fim_core.integrity import read_sealed, write_sealed
from fim_core.store import Artifact, Store

_WITHDRAWN = "withdrawn"


def champion(store: Store, experiment: str) -> Artifact | None:
    """The model that an experiment has promoted, or None; see `champion_weights`.

    Raises:
        DamagedFile: its manifest is damaged.
    """
    return store.find_current("champion_model", experiment)


def decisions(store: Store, experiment: str) -> list[Artifact]:
    """Every decision about a candidate of an experiment, oldest first; `counts["promote"]` says which way it went."""
    return [a for a in store.versions("champion_model") if a.manifest["experiment"] == experiment]


def promoted(store: Store, experiment: str) -> list[Artifact]:
    """Every model that an experiment has promoted, oldest first, the one that serves included."""
    return [decided for decided in decisions(store, experiment) if decided.counts["promote"]]


def champion_before(store: Store, experiment: str, candidate: str) -> Artifact | None:
    """The champion that a candidate has to beat; once it is champion itself, the one that it replaced."""
    reigning = champion(store, experiment)
    if reigning is not None and reigning.counts["candidate"] == candidate:
        return store.find("champion_model", reigning.manifest["inputs"]["champion"])
    return reigning


def roll_back(store: Store, experiment: str, version: str | None = None) -> Artifact:
    """Make an earlier champion the champion again: the one before, or the version that is named.

    The checkpoint that it replaces does not become champion by itself again, whatever the gate finds: someone had a
    reason, and the next scheduled run must not undo it.

    Raises:
        FimError: there is none to go back to.
    """
    reigning = champion(store, experiment)
    if reigning is None:
        raise FimError(f"Experiment {experiment} has no champion to roll back.")
    target = store.find("champion_model", version or reigning.manifest["inputs"]["champion"])
    if target is None or not target.counts["promote"]:
        known = [a.version for a in promoted(store, experiment) if a != reigning]
        raise FimError(f"There is no such earlier champion. Known: {', '.join(known) or 'none'}.")
    taken_back = withdrawn(store, experiment) | {reigning.counts["candidate"]}
    _write_withdrawn(store, experiment, taken_back - {target.counts["candidate"]})
    store.use(target, experiment)
    return target


def withdrawn(store: Store, experiment: str) -> set[str]:
    """The checkpoints of an experiment that were rolled back.

    Raises:
        DamagedFile: their list is damaged.
    """
    try:
        return set(read_sealed(withdrawn_file(store, experiment))["checkpoints"])
    except FileNotFoundError:
        return set()


def _write_withdrawn(store: Store, experiment: str, checkpoints: set[str]) -> None:
    store.folder("champion_model", _WITHDRAWN)
    write_sealed(withdrawn_file(store, experiment), {"checkpoints": sorted(checkpoints)})


def withdrawn_file(store: Store, experiment: str) -> Path:
    """Where the checkpoints of an experiment that were rolled back are listed."""
    return store.root / "champion_model" / _WITHDRAWN / f"{experiment}.json"


def champion_weights(champion: Artifact) -> Path:
    """The folder of a champion's weights, which loads with transformers."""
    return DecisionFolder(champion.path).weights(champion.manifest["experiment"])
