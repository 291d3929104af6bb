"""Tiny experiments for tests of training, and ranks that start within milliseconds."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets
import numpy as np

from fim_core.config import Experiment
from fim_core.packing import IGNORE_INDEX

FEW_ROWS = 16
"""Rows of the fixture `few_rows`: one optimizer step."""

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
}


def tiny_experiment(**options: Any) -> Experiment:
    """An experiment over two layers of Qwen3; keyword arguments replace its top-level options."""
    content: dict[str, Any] = {
        "name": "tiny",
        "model": {"config": MODEL, "tokenizer": "unused"},
        "data": data_options(),
        "batch_rows": 8,
        "optimizer": {"lr": 0.01},
        "scheduler": {"name": "cosine", "warmup_steps": 2},
    }
    return Experiment.model_validate(content | options)


def data_options(**options: Any) -> dict[str, Any]:
    """The `data` section; the rows come from `make_rows`, so its source is not read."""
    return {"sources": [{"type": "demo"}], "max_length": 64} | options


def make_rows(count: int, vocabulary: int, seed: int) -> dict[str, list[Any]]:
    """Random rows in families: each family shares a prompt prefix; responses of 1 to 9 tokens."""
    rng = np.random.default_rng(seed)
    shared = [rng.integers(0, vocabulary, 12).tolist() for _ in range(max(1, count // 4))]
    rows: dict[str, list[Any]] = {"row_id": [], "type": [], "input_ids": [], "labels": [], "prompt_length": []}
    for index in range(count):
        prompt = shared[index % len(shared)] + rng.integers(0, vocabulary, int(rng.integers(2, 9))).tolist()
        response = rng.integers(0, vocabulary, int(rng.integers(1, 10))).tolist()
        rows["row_id"].append(f"row-{seed}-{index}")
        rows["type"].append("")
        rows["input_ids"].append(prompt + response)
        rows["labels"].append([IGNORE_INDEX] * len(prompt) + response)
        rows["prompt_length"].append(len(prompt))
    return rows


def save_rows(folder: Path, train: dict[str, list[Any]], held_out: dict[str, list[Any]]) -> Path:
    """Store two splits as tokenize_prompts does; returns the folder."""
    features = datasets.Features(
        row_id=datasets.Value("string"),
        type=datasets.Value("string"),
        input_ids=datasets.List(datasets.Value("int32")),
        labels=datasets.List(datasets.Value("int32")),
        prompt_length=datasets.Value("int32"),
    )
    splits = {"train": train, "eval": held_out}
    content = {name: datasets.Dataset.from_dict(rows, features=features) for name, rows in splits.items()}
    datasets.DatasetDict(content).save_to_disk(str(folder / "dataset"))
    return folder


@cache
def _server() -> ForkServerContext:
    """A process that has imported everything, from which ranks are forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rank_imports"])
    # Python 3.11 does not give the server this process's sys.path before it imports.
    with patch.dict(
        os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ):
        forkserver.ensure_running()
    return context


class Ranks:
    """Processes that call `function(*arguments)` and meet by gloo, forked from a server that has torch imported."""

    def __init__(self, count: int, function: Callable[..., Any], *arguments: Any, folder: Path) -> None:
        """Start them.

        Args:
            folder: folder of the test, in which the ranks meet.
        """
        folder.mkdir(parents=True, exist_ok=True)
        context = _server()
        meeting = str(folder / f"meeting-{os.urandom(4).hex()}")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            work = (rank, count, meeting, sender, function, arguments)
            process = context.Process(target=_rank, args=work, daemon=True)
            process.start()
            sender.close()
            self._pipes.append(receiver)
            self._processes.append(process)

    @property
    def running(self) -> bool:
        """Whether all ranks still run."""
        return all(process.is_alive() for process in self._processes)

    def results(self, timeout: float = 120.0) -> list[Any]:
        """What each rank returned.

        Raises:
            RankFailed: one raised an error.
        """
        try:
            answers = []
            for rank, pipe in enumerate(self._pipes):
                if not pipe.poll(timeout):
                    raise TimeoutError(f"rank {rank} has not answered in {timeout} seconds")
                error, answer = pipe.recv()
                if error is not None:
                    raise RankFailed(f"rank {rank} failed:\n{error}")
                answers.append(answer)
            return answers
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL them all."""
        for process in self._processes:
            process.kill()
            process.join()


class RankFailed(Exception):
    """What a rank raised, as text."""


def run_ranks(
    count: int, function: Callable[..., Any], *arguments: Any, folder: Path, timeout: float = 120.0
) -> list[Any]:
    """Call a function on so many ranks; returns what each returned."""
    return Ranks(count, function, *arguments, folder=folder).results(timeout)


def _rank(
    rank: int, count: int, meeting: str, pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
        FIM_RENDEZVOUS_FILE=meeting,
        GLOO_SOCKET_IFNAME="lo",
        TORCH_FORCE_WEIGHTS_ONLY_LOAD="1",
    )
    try:
        pipe.send((None, function(*arguments)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
