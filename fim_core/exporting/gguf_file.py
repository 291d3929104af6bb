"""Writing of a checkpoint as one GGUF file, the format of llama.cpp (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

Written with `gguf`, the package of llama.cpp. Its converter, convert_hf_to_gguf.py, is in no package that llama.cpp publishes, and
knows tokenizers by a list of hashes, so that it refuses every tokenizer that was trained here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    quant_shape_to_byte_shape,
)
from gguf.quants import quantize
from safetensors import safe_open
from transformers import PretrainedConfig

from fim_core.errors import FimError
from fim_core.exporting.architectures import add_hyperparameters, architecture_of, names_of
from fim_core.exporting.vocabulary import Vocabulary

Storage = Literal["f16", "q8_0"]

_WEIGHTS = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_LARGEST_F16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the checkpoint, and how it is stored."""

    file: Path
    source: str
    name: str
    shape: tuple[int, ...]
    storage: GGMLQuantizationType

    @property
    def bytes(self) -> int:
        if self.storage in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            return int(np.prod(self.shape)) * (4 if self.storage == GGMLQuantizationType.F32 else 2)
        return int(np.prod(quant_shape_to_byte_shape(self.shape, self.storage)))


def write_gguf(
    checkpoint: Path, config: PretrainedConfig, vocabulary: Vocabulary, path: Path, *, name: str, storage: Storage
) -> None:
    """Write the weights, the hyperparameters and the vocabulary of a checkpoint; one tensor at a time is in memory.

    Args:
        checkpoint: folder with the weights, in safetensors.
        config: content of its config.json.
        path: of the new file.
        name: of the model, shown by programs that load it.
        storage: of matrices; vectors are float32, as llama.cpp requires.

    Raises:
        FimError: llama.cpp cannot compute this model, or a weight is too large for float16.
    """
    architecture = architecture_of(config)
    kind, file_type = _WEIGHTS[storage]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[architecture.arch])
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_hyperparameters(writer, config)
    vocabulary.add_to(writer)
    name_of = names_of(architecture, config)
    tensors = [
        _Tensor(file, source, name_of(source), shape, _storage_of(shape, kind))
        for file, source, shape in _weights_in(checkpoint)
        # Tied to the embedding, which llama.cpp uses where there is no output matrix.
        if not (config.tie_word_embeddings and source == "lm_head.weight")
    ]
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, tensor.storage)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        with safe_open(tensor.file, "pt") as file:
            weight = architecture.change(tensor.source, file.get_tensor(tensor.source).to(torch.float32), config)
        writer.write_tensor_data(_stored(tensor, weight.contiguous().numpy()))
    writer.close()


def _weights_in(checkpoint: Path) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """File, name and shape of each tensor."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield path, name, tuple(file.get_slice(name).get_shape())


def _storage_of(shape: tuple[int, ...], kind: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    block, _ = GGML_QUANT_SIZES[kind]
    # As llama.cpp's own quantization does.
    return kind if shape[-1] % block == 0 else GGMLQuantizationType.F16


def _stored(tensor: _Tensor, weight: np.ndarray) -> np.ndarray:
    if tensor.storage == GGMLQuantizationType.F16 and np.abs(weight).max() > _LARGEST_F16:
        raise FimError(f"{tensor.source} has values that float16 cannot hold. Export with --format safetensors.")
    return quantize(weight, tensor.storage)
