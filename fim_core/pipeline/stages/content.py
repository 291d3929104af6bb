"""Digests of pretrained models and tokenizers outside the store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def folder_digest(place: str, patterns: tuple[str, ...]) -> str:
    """Content hash of the matching files of a local folder; a hub id is returned unchanged."""
    folder = Path(place)
    if not folder.is_dir():
        return place
    hasher = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        with file.open("rb") as content:
            hasher.update(json.dumps([file.name, hashlib.file_digest(content, "sha256").hexdigest()]).encode())
    return hasher.hexdigest()[:16]


def pretrained_digest(place: str) -> str:
    """Content hash of a pretrained model; a hub id is returned unchanged."""
    return folder_digest(place, ("*.safetensors", "*.json"))
