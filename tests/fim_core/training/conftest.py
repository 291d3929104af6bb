"""Tokenizer and dataset that the tests of training share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from data_path import data_options
from transformers import PreTrainedTokenizerFast

from fim_core.config import ModelConfig
from fim_core.prompt_format.recipe import write_recipe
from fim_core.prompts import PromptBuilder

# Ranks are separate processes and import their functions by name.
sys.path.insert(0, str(Path(__file__).parent))

from training_helpers import FEW_ROWS, MODEL, make_rows, save_rows


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tokenizer with the recipe of prompts next to its folder, as the stage that renders prompts leaves them."""
    folder = tmp_path_factory.mktemp("prompts")
    builder = PromptBuilder(tokenizer, ModelConfig(config=MODEL, tokenizer="unused"), data_options())
    tokenizer.save_pretrained(folder / "tokenizer")
    write_recipe(folder, builder.recipe)
    return folder / "tokenizer"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """40 rows to train on, 10 held out."""
    size = len(tokenizer)
    return save_rows(tmp_path_factory.mktemp("tokenized"), make_rows(40, size, seed=1), make_rows(10, size, seed=2))


@pytest.fixture(scope="session")
def few_rows(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Rows that fit into one optimizer step however they are packed. One of them has no position to train on."""
    rows = make_rows(FEW_ROWS, len(tokenizer), seed=3)
    rows["labels"][5] = [-100] * len(rows["labels"][5])
    return save_rows(tmp_path_factory.mktemp("few"), rows, make_rows(2, len(tokenizer), seed=4))
