"""Published versions of an asset."""

from __future__ import annotations

import os
from pathlib import Path

from fim_core.errors import FimError
from fim_core.store.artifact import MANIFEST, Artifact, read_artifact
from fim_core.store.places import StoreFolder


def find(store: StoreFolder, asset: str, version: str) -> Artifact | None:
    """A published artifact, or None."""
    artifact = read_artifact(asset, store.root / asset / version)
    return artifact if artifact is not None and artifact.version == version else None


def versions(store: StoreFolder, asset: str) -> list[Artifact]:
    """Every published version of an asset, oldest first."""
    entries = sorted(store.root.glob(f"{asset}/*"))
    found = [a for entry in entries if is_version(store, entry) and (a := read_artifact(asset, entry))]
    return sorted(found, key=lambda artifact: artifact.manifest["serial"])


def unreadable(store: StoreFolder, asset: str) -> list[Path]:
    """Folders that have the path of a version of an asset, but whose manifest is missing or damaged."""
    entries = sorted(store.root.glob(f"{asset}/*"))
    places = (entry for entry in entries if store.owns(entry, "version") and entry.is_dir())
    return [entry for entry in places if not is_version(store, entry)]


def is_version(store: StoreFolder, path: Path) -> bool:
    """Whether a path is a published version: a folder with the name and the manifest that `publish` gives it."""
    return (
        store.owns(path, "version")
        and not path.is_symlink()
        and (found := read_artifact(path.parent.name, path)) is not None
        and found.version == path.name
    )


def require_replaceable(store: StoreFolder, final: Path) -> None:
    """Require that the path of a version is free or holds that version.

    Raises:
        FimError: it holds something else.
    """
    if os.path.lexists(final) and not is_version(store, final):
        raise FimError(
            f"{final} exists and holds no artifact, or its {MANIFEST} is damaged, so it is not replaced. Move it away, "
            "and run again."
        )
