"""Attempts at a version: one process at a time, in a work folder that the next attempt resumes from."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fim_core.locks import acquire, is_locked, open_lock
from fim_core.store.places import StoreFolder

_log = logging.getLogger(__name__)


@contextmanager
def making(store: StoreFolder, asset: str, version: str) -> Iterator[None]:
    """Hold the lock of a version; waits for another process that makes it, whose result can then be reused.

    The kernel frees the lock of a process that dies.

    Raises:
        FimError: the folder cannot be written, or the disk is full.
    """
    with store.reporting_unwritable(asset):
        store.folder("locks")
        descriptor = open_lock(_lock(store, asset, version))
    try:
        acquire(descriptor, on_wait=lambda: _log.warning("Another run makes %s %s; waiting for it.", asset, version))
        yield
    finally:
        os.close(descriptor)


def is_being_made(store: StoreFolder, asset: str, version: str) -> bool:
    """Whether a process on this machine holds the lock of a version."""
    return is_locked(_lock(store, asset, version))


def work_folder(store: StoreFolder, asset: str, version: str) -> Path:
    """The folder in which attempts at a version keep what a retry resumes from; created if missing.

    Raises:
        FimError: the folder cannot be written, or the disk is full.
    """
    with store.reporting_unwritable(asset):
        return store.folder("work", asset, version)


def work_folders(store: StoreFolder) -> list[Path]:
    """Work folders of unfinished versions, at paths as `work_folder` gives them."""
    return store.owned_folders("work")


def clear_work(store: StoreFolder, asset: str, version: str) -> None:
    """Remove the work folder of a version that has been published."""
    folder = store.root / "work" / asset / version
    if folder in work_folders(store):
        shutil.rmtree(folder, ignore_errors=True)


def _lock(store: StoreFolder, asset: str, version: str) -> Path:
    return store.root / "locks" / f"{asset}-{version}"
