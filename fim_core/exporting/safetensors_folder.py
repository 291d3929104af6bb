"""A folder of safetensors in bfloat16, for `fim serve`, transformers and other programs."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fim_core.atomic import read_json_as, write_json
from fim_core.folders.checkpoint import CheckpointFolder
from fim_core.modeling.save import cast
from fim_core.store import MANIFEST

_INDEX = "model.safetensors.index.json"
_NUMBER = torch.bfloat16


def write_bfloat16(checkpoint: Path, folder: Path) -> None:
    """Write a copy of a checkpoint with weights in bfloat16, without the records of its training run.

    One file of weights at a time is in memory.

    Args:
        folder: exists and is empty.
    """
    layout = CheckpointFolder(checkpoint)
    # Digests in the manifest are of the weights as they were.
    left_out = {layout.events, layout.packs, layout.trackers, checkpoint / MANIFEST, checkpoint / _INDEX}
    total = 0
    for path in sorted(checkpoint.iterdir()):
        if path in left_out or path.name.startswith("."):
            continue
        if path.suffix == ".safetensors":
            total += _cast_file(path, folder / path.name)
        elif path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)
    if (checkpoint / _INDEX).exists():
        index = read_json_as(checkpoint / _INDEX, dict)
        write_json(folder / _INDEX, {**index, "metadata": {**index.get("metadata", {}), "total_size": total}})
    config = read_json_as(checkpoint / "config.json", dict)
    write_json(folder / "config.json", {**config, "dtype": str(_NUMBER).removeprefix("torch.")})


def _cast_file(source: Path, target: Path) -> int:
    """Write a file of weights in bfloat16; returns the size of the weights in bytes."""
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
        weights = cast({name: file.get_tensor(name) for name in file.keys()}, _NUMBER)  # noqa: SIM118 (not a dict)
    save_file(weights, target, metadata=metadata)
    # safetensors makes its files readable by their owner only.
    target.chmod(0o644)
    return sum(weight.nbytes for weight in weights.values())
