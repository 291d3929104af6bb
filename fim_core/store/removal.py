"""Removal of what the store has written itself, and of nothing else."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from fim_core.store.links import is_link
from fim_core.store.places import StoreFolder
from fim_core.store.versions import is_version


def remove(store: StoreFolder, folder: Path) -> None:
    """Delete a version, a draft, a work folder or a download. It disappears for readers at once, by a rename, before its files do.

    Raises:
        FimError: the folder is not marked as a store.
        ValueError: the folder is not one of these.
    """
    store.require_mark()
    disposable = [folder for kind in ("draft", "work", "download") for folder in store.owned_folders(kind)]
    if not (is_version(store, folder) or folder in disposable):
        raise ValueError(f"{folder} is not a folder of {store.root}")
    with store.reporting_unwritable(folder.parent.name):
        removed = store.folder("tmp") / f"removed-{secrets.token_hex(8)}"
        os.rename(folder, removed)
        shutil.rmtree(removed)


def remove_file(store: StoreFolder, file: Path) -> None:
    """Delete a link of an experiment, its list of withdrawn checkpoints, or a part.

    Raises:
        FimError: the folder is not marked as a store.
        ValueError: the file is not one of these.
    """
    store.require_mark()
    if not may_remove(store, file):
        raise ValueError(f"{file} is not a file of {store.root}")
    file.unlink()


def may_remove(store: StoreFolder, file: Path) -> bool:
    """Whether `remove_file` deletes a file: a link that `use` made, or a file that is at a path of the store's own."""
    if file.is_symlink():
        return is_link(store, file)
    return file.is_file() and (store.owns(file, "withdrawn") or store.owns(file, "batch"))


def forget_checks(store: StoreFolder, asset: str, version: str) -> None:
    """Remove the results of the checks of a version that has been replaced or removed."""
    for found in (store.root / "checks" / asset).glob(f"{version}-*"):
        if store.owns(found, "check") and not found.is_symlink():
            found.unlink(missing_ok=True)
