"""Training a tokenizer on the training rows only, so that held-out rows cannot influence it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from fim_core.config import DataConfig, ModelConfig
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.folders.prompts import PromptsFolder
from fim_core.prompt_format.tokens import control_pattern, control_tokens
from fim_core.prompts.write import write_fim_prompts


def train_tokenizer_on(
    raw: Path, *, data: DataConfig, model: ModelConfig, vocab_size: int, seed: int
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the prompts and responses of the rows that `write_fim_prompts` puts into `train`.

    Control tokens and markup do not depend on a tokenizer's training data, so rendering with an untrained one determines
    which rows are kept, and their split.

    Args:
        raw: the raw table.
        model: names the control tokens, which decide which user text is rejected.
        vocab_size: entries, control tokens included.
        seed: of the split.
    """
    blank = train_tokenizer([], vocab_size)
    with TemporaryDirectory(prefix="fim-tokenizer-") as folder:
        write_fim_prompts(raw, Path(folder), data=data, model=model, tokenizer=blank, seed=seed)
        return train_tokenizer(_training_texts(PromptsFolder(Path(folder)).rows, blank), vocab_size)


def _training_texts(prompts: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    """Text between control tokens, each distinct text once a batch: otherwise the markup would outweigh the SQL."""
    pattern = control_pattern(control_tokens(tokenizer))
    for batch in pq.ParquetFile(prompts).iter_batches(columns=["prompt", "response", "split"]):
        columns = [batch.column(name).to_pylist() for name in ("prompt", "response", "split")]
        texts: dict[str, None] = {}
        for prompt, response, split in zip(*columns, strict=True):
            if split == "train":
                texts.update(dict.fromkeys([*pattern.split(prompt), response]))
        yield from filter(None, texts)
