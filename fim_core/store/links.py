"""Links to the current version of an asset, one for all experiments (`current`) and one for each (`by_experiment`)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fim_core.atomic import replacing
from fim_core.errors import DamagedFile, FimError
from fim_core.store.artifact import MANIFEST, Artifact, read_artifact
from fim_core.store.places import ASSETS, VERSION_PATTERN, StoreFolder


def current(store: StoreFolder, asset: str, experiment: str | None = None) -> Artifact:
    """The newest artifact of an asset, or the one that an experiment uses.

    Raises:
        FimError: it has not been made yet.
        DamagedFile: its manifest is damaged.
    """
    if (artifact := find_current(store, asset, experiment)) is None:
        whose = f" of experiment {experiment}" if experiment else ""
        raise FimError(f"There is no {asset}{whose} in {store.root} yet. Materialize {asset} first.")
    return artifact


def find_current(store: StoreFolder, asset: str, experiment: str | None = None) -> Artifact | None:
    """As `current`; None if it has not been made yet.

    Raises:
        DamagedFile: its manifest is damaged.
    """
    link = _link(store, asset, experiment)
    folder = link.resolve()
    if not link.is_symlink() or not folder.is_dir():
        return None
    if (artifact := read_artifact(asset, folder)) is None:
        raise DamagedFile(
            f"{folder / MANIFEST} is missing or damaged. Move {folder} away, and materialize {asset} again."
        )
    return artifact


def use(store: StoreFolder, artifact: Artifact, experiment: str) -> None:
    """Point `current` and the experiment's own link at an artifact.

    Raises:
        FimError: something else is in the place of a link, the folder cannot be written, or the disk is full.
    """
    with store.reporting_unwritable(artifact.asset):
        store.folder(artifact.asset, "by_experiment")
        links = (_link(store, artifact.asset, None), _link(store, artifact.asset, experiment))
        for link in links:
            if os.path.lexists(link) and not is_link(store, link):
                raise FimError(f"{link} is not a link of this store, so it is not replaced. Move it away.")
        for link in links:
            _point(link, artifact)


def linked_artifacts(store: StoreFolder, forget: Sequence[str] = ()) -> list[Artifact]:
    """Every artifact that an experiment's link or `current` points at.

    Args:
        forget: experiments whose links, and whose artifacts behind `current`, are left out.
    """
    used = [read_artifact(link.parts[-3], link) for link in links_by_experiment(store) if link.name not in forget]
    latest = [read_artifact(link.parent.name, link) for link in store.root.glob("*/current") if is_link(store, link)]
    return [a for a in used if a] + [a for a in latest if a and a.manifest["experiment"] not in forget]


def links_by_experiment(store: StoreFolder) -> list[Path]:
    """The links of all experiments to the versions that they use, of all assets."""
    return [link for link in sorted(store.root.glob("*/by_experiment/*")) if is_link(store, link)]


def repair_current(store: StoreFolder) -> None:
    """Point each `current` whose version is gone at the newest version that an experiment uses; remove it if none does."""
    for asset in ASSETS:
        link = _link(store, asset, None)
        if is_link(store, link) and not link.exists():
            links = (other for other in links_by_experiment(store) if other.parts[-3] == asset)
            used = [artifact for other in links if (artifact := read_artifact(asset, other.resolve()))]
            if used:
                _point(link, max(used, key=lambda artifact: artifact.manifest["serial"]))
            else:
                link.unlink()


def is_link(store: StoreFolder, path: Path) -> bool:
    """Whether a path is a link that `use` made: to a version of the same asset."""
    if not (store.owns(path, "link") and path.is_symlink()):
        return False
    return re.fullmatch(rf"(?:\.\./)?{VERSION_PATTERN}", os.readlink(path)) is not None


def _link(store: StoreFolder, asset: str, experiment: str | None) -> Path:
    return store.root / asset / (f"by_experiment/{experiment}" if experiment else "current")


def _point(link: Path, artifact: Artifact) -> None:
    with replacing(link) as scratch:
        scratch.symlink_to(os.path.relpath(artifact.path, link.parent))
