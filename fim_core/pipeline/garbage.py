"""Garbage collection of unreferenced versions."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fim_core.batch_cache import BATCH_CACHE, unused_since
from fim_core.champion.registry import withdrawn_file
from fim_core.store import ASSETS, Artifact, DraftOwner, Store

_HOUR_SECONDS = 60 * 60
_DAY_SECONDS = 24 * _HOUR_SECONDS


@dataclass(frozen=True)
class Garbage:
    """One folder to remove, or only `files` in it, with the reason."""

    path: Path
    reason: str
    bytes: int
    files: tuple[Path, ...] = ()


def find_garbage(
    store: Store,
    *,
    keep_checkpoints: int = 3,
    keep_champions: int = 3,
    forget: Sequence[str] = (),
    work_days: float = 14.0,
    fresh_minutes: float = 60.0,
) -> list[Garbage]:
    """Find versions that no link, kept champion, kept checkpoint or active run refers to.

    Args:
        store: the store to search.
        keep_checkpoints: number of newest checkpoints to keep per experiment, with everything that they were made from.
        keep_champions: number of newest champions to keep per experiment, with everything that they were made from. The
            current champion and the one that it replaced are always kept.
        forget: names of experiments to keep nothing for, however new it is.
        work_days: age in days from which work folders of unfinished attempts, and cached batches and downloads that no
            build has used, are removed.
        fresh_minutes: versions younger than this are kept, because the run that made them may be about to use them.

    Raises:
        FimError: the folder is not marked as a store.
    """
    store.require_mark()
    kept = _referenced(store, keep_checkpoints, keep_champions, forget)
    garbage = [
        Garbage(artifact.path, f"no checkpoint, champion or run refers to this {asset}", _size(artifact.path))
        for asset in ASSETS
        for artifact in store.versions(asset)
        if (asset, artifact.version) not in kept
        and (_age_seconds(artifact) >= fresh_minutes * 60 or artifact.manifest["experiment"] in forget)
    ]
    for name in forget:
        chosen = [link for link in store.links_by_experiment() if link.name == name]
        chosen += [file for file in [withdrawn_file(store, name)] if store.may_remove(file)]
        if chosen:
            garbage.append(Garbage(store.root, f"what experiment {name} uses: {len(chosen)} links", 0, tuple(chosen)))
    garbage += [
        Garbage(path, "left by a run that died", _size(path))
        for path, owner in store.drafts()
        if (not _alive(owner) if owner else _last_touched(path) < time.time() - _HOUR_SECONDS)
    ]
    oldest = time.time() - work_days * _DAY_SECONDS
    garbage += [
        Garbage(path, f"unfinished for more than {work_days:g} days", _size(path))
        for path in store.work_folders()
        if _last_touched(path) < oldest and not store.is_being_made(path.parent.name, path.name)
    ]
    garbage += [
        Garbage(path, f"downloaded, and not used for {work_days:g} days", _size(path))
        for path in store.owned_folders("download")
        if path.stat().st_mtime < oldest
    ]
    for folder in sorted((store.root / BATCH_CACHE).glob("*")):
        if unused := [path for path in unused_since(folder, oldest) if store.may_remove(path)]:
            reason = f"{len(unused):,} cached batches that no build has used for {work_days:g} days"
            garbage.append(Garbage(folder, reason, sum(path.stat().st_size for path in unused), tuple(unused)))
    return garbage


def remove(store: Store, garbage: list[Garbage]) -> None:
    """Delete what `find_garbage` found.

    Raises:
        FimError: the folder is not marked as a store.
    """
    for entry in garbage:
        for file in entry.files:
            store.remove_file(file)
        if not entry.files:
            store.remove(entry.path)
            if entry.path.parents[1] == store.root:
                store.forget_checks(entry.path.parent.name, entry.path.name)
    store.repair_current()


def experiments_in(store: Store) -> set[str]:
    """Names of the experiments with artifacts or links in a store."""
    made = {artifact.manifest["experiment"] for asset in ASSETS for artifact in store.versions(asset)}
    return made | {link.name for link in store.links_by_experiment()}


def _referenced(
    store: Store, keep_checkpoints: int, keep_champions: int, forget: Sequence[str]
) -> set[tuple[str, str]]:
    """(asset, version) of everything reachable from links, kept champions and checkpoints, and active runs."""
    pending = store.links(forget)
    pending += [
        before
        for artifact in pending
        if artifact.asset == "champion_model"
        and (before := store.find("champion_model", artifact.manifest["inputs"]["champion"]))
    ]
    promoted = [artifact for artifact in store.versions("champion_model") if artifact.counts["promote"]]
    pending += _newest(promoted, keep_champions, forget)
    pending += _newest(store.versions("trained_checkpoint"), keep_checkpoints, forget)
    for _, owner in store.drafts():
        if owner and _alive(owner):
            pending += [a for asset, version in owner.inputs.items() if (a := store.find(asset, version))]
    kept: set[tuple[str, str]] = set()
    while pending:
        artifact = pending.pop()
        if (artifact.asset, artifact.version) in kept:
            continue
        kept.add((artifact.asset, artifact.version))
        inputs = artifact.manifest["inputs"]
        pending += [a for asset, version in inputs.items() if (a := store.find(asset, version))]
    return kept


def _newest(artifacts: Sequence[Artifact], keep: int, forget: Sequence[str]) -> list[Artifact]:
    """The last `keep` artifacts of each experiment; `artifacts` are in order of creation."""
    by_experiment: dict[str, list[Artifact]] = {}
    for artifact in artifacts:
        by_experiment.setdefault(artifact.manifest["experiment"], []).append(artifact)
    return [a for name, made in by_experiment.items() if name not in forget for a in made[-keep:]]


def _age_seconds(artifact: Artifact) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(artifact.manifest["created"])).total_seconds()


def _last_touched(folder: Path) -> float:
    """Time of the last change in a work folder; running training touches its heartbeat file regularly."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        # Its run is removing it right now.
        return time.time()


def _alive(owner: DraftOwner) -> bool:
    """Whether the process that writes a draft may still be running; a process on another machine counts as running."""
    if owner.host != socket.gethostname():
        return True
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
