"""A champion as it is published: the files of the model, and a record of where they come from.

Publishing adds two things to a folder or bucket:

    <version>-<build>/…    the model, never changed afterwards
    champion.json          which of these folders is the champion; replaced in one step, after the model is complete
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fim_core.champion.registry import champion_weights
from fim_core.errors import FimError
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.store import MANIFEST, Artifact, Store

RECORD = "champion.json"

_BUILD_DIGITS = 8
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Formats that may run code when they are loaded."""


@dataclass(frozen=True)
class Release:
    """A champion to publish.

    Attributes:
        name: of its folder. Another build of the same version gets another name, as its weights may differ.
        folder: the weights, in the format of transformers.
        files: path of each file in it to the size in bytes; without the records of the training run.
        record: content of champion.json.
    """

    name: str
    folder: Path
    files: Mapping[str, int]
    record: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def release_of(champion: Artifact, store: Store) -> Release:
    """Prepare a champion for publishing.

    Raises:
        DamagedFile: a file of it is missing or has changed.
        FimError: it has weights in another format than safetensors.
    """
    manifest = champion.require_whole().manifest
    folder = champion_weights(champion)
    layout = CheckpointFolder(folder)
    records = {layout.events, layout.packs, layout.trackers, folder / MANIFEST}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and records.isdisjoint((path, *path.parents))]
    suffixes = {path.suffix for path in paths}
    if ".safetensors" not in suffixes or suffixes.intersection(_UNSAFE_SUFFIXES):
        raise FimError(f"{folder} has weights in another format than safetensors, so it is not published.")
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    name = f"{champion.version}-{manifest['build'][:_BUILD_DIGITS]}"
    below = folder.relative_to(champion.path).as_posix()
    record = {
        "experiment": manifest["experiment"],
        "champion": champion.version,
        "checkpoint": champion.counts["candidate"],
        "folder": name,
        "metrics": _metrics(store, manifest["inputs"]["evaluation_report"]),
        "files": {file: {"bytes": size, "xxh3": manifest["files"][f"{below}/{file}"]} for file, size in files.items()},
    }
    return Release(name, folder, files, record)


def _metrics(store: Store, report: str) -> dict[str, float]:
    found = store.find("evaluation_report", report)
    metrics = found.counts["metrics"] if found else {}
    return {name: figure["value"] for name, figure in metrics.items() if figure["value"] is not None}


def require_same_experiment(record: Any, release: Release, place: str) -> None:
    """Require that a record which is there already is one of the same experiment.

    Args:
        record: content of the champion.json that is there, or None.

    Raises:
        FimError: it belongs to another experiment, or to something else.
    """
    if record is None:
        return
    owner = record.get("experiment") if isinstance(record, dict) else None
    if owner != release.record["experiment"]:
        whose = f"the champion of experiment {owner}" if owner else "a champion.json of something else"
        raise FimError(f"{place} holds {whose}. Give each experiment a place of its own in `publish`.")
