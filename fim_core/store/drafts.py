"""Drafts: versions that are being written, each with a record of the process that writes it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fim_core.atomic import read_json_as
from fim_core.errors import DamagedFile
from fim_core.store.places import StoreFolder

OWNER = "owner.json"


@dataclass
class Draft:
    """A version that is being written: its files go under `path`, the counts of its stage into `counts`."""

    path: Path
    counts: dict[str, Any]


@dataclass(frozen=True)
class DraftOwner:
    """The process that writes a draft.

    Attributes:
        pid, host: of the process.
        inputs: version of each input, which garbage collection must keep meanwhile.
    """

    pid: int
    host: str
    inputs: dict[str, str]


def draft_folder(store: StoreFolder, asset: str, version: str) -> Path:
    """Create the folder of a new draft, empty."""
    folder = store.folder("tmp") / f"{asset}-{version}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    return folder


def write_owner(folder: Path, inputs: Mapping[str, str]) -> None:
    """Record this process as the owner of a draft."""
    owner = DraftOwner(os.getpid(), socket.gethostname(), dict(inputs))
    (folder / OWNER).write_text(json.dumps(asdict(owner)), encoding="utf-8")


def discard(folder: Path) -> None:
    """Remove a draft, its owner last, so that a draft which a kill leaves half removed still has one."""
    shutil.rmtree(folder / "new", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def drafts(store: StoreFolder) -> list[tuple[Path, DraftOwner | None]]:
    """Folders of drafts with their owners.

    The owner is None where it cannot be read: for a moment while a draft begins or ends or something is removed, and for
    good if the process is killed in that moment.
    """
    return [(folder, _read_owner(folder)) for folder in store.owned_folders("draft")]


def _read_owner(folder: Path) -> DraftOwner | None:
    try:
        return read_json_as(folder / OWNER, DraftOwner)
    except (FileNotFoundError, DamagedFile):
        return None
