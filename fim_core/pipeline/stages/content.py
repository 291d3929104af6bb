"""What versions need to know of models and tokenizers outside the store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fim_core.config.model import ModelConfig
from fim_core.hub import local_file


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


def has_dropout(model: ModelConfig) -> bool:
    """Whether training draws random numbers: for LoRA's dropout, or for one that the model's configuration names."""
    config = dict(model.config or {})
    if model.name_or_path is not None and (file := local_file(model.name_or_path, "config.json")) is not None:
        config = json.loads(file.read_text(encoding="utf-8"))
    config |= model.hf_config_kwargs
    shares = [value for key, value in config.items() if "dropout" in key or key.endswith("_pdrop")]
    lora = 0.0 if model.peft_config is None else model.peft_config.lora_dropout
    return lora > 0 or any(isinstance(share, int | float) and share > 0 for share in shares)
