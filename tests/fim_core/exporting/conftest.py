"""A checkpoint to export."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_checkpoints import write_checkpoint
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model of type qwen3 with a tokenizer that was trained here."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), tokenizer, "qwen3")
