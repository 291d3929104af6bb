"""Published artifacts: their versions, manifests and integrity."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fim_core.atomic import read_json
from fim_core.errors import DamagedFile
from fim_core.integrity import find_damage, unseal

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"

_REQUIRED_KEYS = {
    "asset": str,
    "version": str,
    "experiment": str,
    "inputs": dict,
    "build": str,
    "builds": dict,
    "serial": int,
    "config": dict,
    "counts": dict,
    "files": dict,
    "created": str,
}
"""Keys that every manifest has, with the types of their values."""


def version_of(inputs: Mapping[str, str], config: Mapping[str, Any], code: str) -> str:
    """The version (16 hex digits of SHA-256) of what `code` makes of `inputs` under `config`.

    Args:
        inputs: version or content hash of each input, by name.
        config: the options that decide the content, JSON-serialisable.
        code: version of the code that does the work.
    """
    content = json.dumps({"inputs": dict(inputs), "config": config, "code": code}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def digest(value: Any) -> str:
    """Hash of a JSON-serialisable value, 16 hex digits; for manifests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Artifact:
    """A published version of an asset."""

    asset: str
    version: str
    path: Path
    manifest: dict[str, Any]

    @property
    def counts(self) -> dict[str, Any]:
        """What the stage counted while it made this artifact."""
        return self.manifest["counts"]

    def find_damage(self) -> str | None:
        """Which file is missing or has changed since the artifact was published; None if all are intact.

        Each file is read once per process.
        """
        return find_damage(self.path, self.manifest["files"])

    def require_whole(self) -> Artifact:
        """Return this artifact if all its files are as they were published.

        Raises:
            DamagedFile: they are not.
        """
        if (damage := self.find_damage()) is not None:
            folder = self.path.resolve()
            raise DamagedFile(
                f"{self.asset} {self.version} is damaged: {damage} ({folder}). `fim verify --delete --storage "
                f"{folder.parents[1]}` removes it, and the next run makes it again."
            )
        return self


def read_artifact(asset: str, folder: Path) -> Artifact | None:
    """The artifact of an asset in a folder; None if there is none, or if its manifest is damaged (with a warning)."""
    place = folder / MANIFEST
    try:
        manifest = unseal(read_json(place))
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        if not folder.is_dir():
            return None
        _log.warning("This version is not used: %s", error)
        return None
    known = manifest is not None and all(isinstance(manifest.get(k), kind) for k, kind in _REQUIRED_KEYS.items())
    if manifest is None or not known or manifest["asset"] != asset:
        _log.warning("%s does not describe a version of %s, so this folder is not used.", place, asset)
        return None
    return Artifact(asset, manifest["version"], folder, manifest)


def require_whole_copy(folder: Path) -> None:
    """Require that a folder which has a manifest of a store is as it was published; its model card may have changed.

    For folders that a user names: an artifact, a copy of one, or anything else. A folder without a manifest passes.

    Raises:
        DamagedFile: the manifest is damaged, or a file is missing or has changed.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        return
    if not isinstance(manifest, dict) or not {"asset", "files"} <= manifest.keys():
        return  # another tool's
    plain = unseal(manifest)
    damage = f"{MANIFEST} has changed" if plain is None else find_damage(folder, plain["files"], ignore=("README.md",))
    if damage is not None:
        raise DamagedFile(
            f"{folder} is damaged: {damage}. Copy the folder again; in a store, `fim verify --delete` removes what is "
            "damaged, and the next run makes it again."
        )
