"""Damaged weights, each of which is one clear error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from fim_core.errors import DamagedFile, FimError
from fim_core.modeling.weights import load_weights

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": 100,
    "tie_word_embeddings": True,
}


def _header(file: Path, change: Callable[[dict], object]) -> None:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def _tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


NORM = "model.norm.weight"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "header of garbage": lambda file: file.write_bytes(struct.pack("<Q", 20) + b"x" * 2_000),
    "header of another length": lambda file: file.write_bytes(struct.pack("<Q", 2**60) + file.read_bytes()[8:]),
    "a pickle": lambda file: torch.save({NORM: torch.ones(32)}, file),
    "tensor beyond the file": lambda file: _header(file, lambda h: h[NORM].update(data_offsets=[0, 10**9])),
    "another dtype": lambda file: _header(file, lambda h: h[NORM].update(dtype="F9")),
    "a tensor less": lambda file: _tensors(file, lambda tensors: tensors.pop(NORM)),
    "another shape": lambda file: _tensors(file, lambda tensors: tensors.update({NORM: torch.ones(31)})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_a_clear_error(damage: str, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **CONFIG)).save_pretrained(tmp_path)
    assert load_weights(tmp_path).num_parameters() > 0
    DAMAGES[damage](tmp_path / "model.safetensors")
    with pytest.raises(DamagedFile, match="The weights of"):
        load_weights(tmp_path)


def test_lack_of_memory_is_not_reported_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", none_left)
    with pytest.raises(FimError, match="do not fit in memory") as caught:
        load_weights(tmp_path)
    assert not isinstance(caught.value, DamagedFile)
