"""A checkpoint in the format of training: a small random model, its tokenizer and its recipe for prompts."""

from __future__ import annotations

import copy
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from fim_core.confidence.features import FEATURES
from fim_core.confidence.filter import CompletionFilter
from fim_core.config import DataConfig, ModelConfig, Source
from fim_core.prompt_format.recipe import write_recipe
from fim_core.prompts import PromptBuilder
from fim_core.serving.app import create_app
from fim_core.serving.completer import Completer
from fim_core.serving.connections import ConnectionLimits, limited_protocol

CONTEXT_LENGTH = 1000

DATA = DataConfig(sources=[Source(type="demo")])
MODEL = ModelConfig(config={"model_type": "qwen3"}, tokenizer="trained")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a model whose completions are of several lengths, some ended by a stop token."""
    folder = tmp_path_factory.mktemp("checkpoint")
    set_seed(1)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.4,
            max_position_embeddings=CONTEXT_LENGTH,
        )
    )
    # A random model seldom hits on one token, so others stop it too.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 320)]
    model.save_pretrained(folder)
    copy.deepcopy(tokenizer).save_pretrained(folder)
    write_recipe(folder, PromptBuilder(copy.deepcopy(tokenizer), MODEL, DATA).recipe)
    return folder


@pytest.fixture(scope="session")
def filtered(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a filter that hides everything."""
    folder = tmp_path_factory.mktemp("filtered") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    CompletionFilter(dict.fromkeys(FEATURES, 1.0), 0.0, 1.0, "duckdb").write(folder)
    return folder


@pytest.fixture(scope="session")
def completer(checkpoint: Path) -> Completer:
    return Completer.load(checkpoint)


@pytest.fixture(scope="session")
def address(completer: Completer) -> Iterator[str]:
    """The address of a server on a free port, as `fim serve` runs it, for the libraries of clients."""
    app = create_app(completer, model_name="fim", max_tokens=16, allowed_hosts=("127.0.0.1", "localhost"))
    options = uvicorn.Config(app, port=0, http=limited_protocol(ConnectionLimits()), ws="none", log_level="warning")
    server = uvicorn.Server(options)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()
