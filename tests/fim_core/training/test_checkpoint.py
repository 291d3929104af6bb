"""A run that is killed and resumed ends with the weights of one that was never stopped."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

from rank_functions import whole_run
from training_helpers import Ranks, run_ranks, tiny_experiment

from fim_core.training.job import Job, Work

DROPOUT = {"peft_type": "LORA", "r": 4, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]}


def job_in(folder: Path, dataset: Path, tokenizer: Path, **options: Any) -> Job:
    content = {
        "epochs": 3,
        "checkpoint": [{"type": "huggingface"}, {"type": "deepspeed", "save_every_n_steps": 2, "keep": 2}],
        **options,
    }
    return Job(tiny_experiment(**content), dataset, tokenizer, Work(folder), "test")


def weights_hash(job: Job) -> str:
    return hashlib.sha256((job.work.model / "model.safetensors").read_bytes()).hexdigest()


def events(job: Job, kind: str) -> list[dict[str, Any]]:
    lines = job.work.metrics.read_text().splitlines() if job.work.metrics.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def run_with_kills(job: Job, ranks: int, kills: int, seed: int) -> None:
    """Train; SIGKILL all ranks at random moments, and start again until the run comes to its end."""
    rng = random.Random(seed)
    for kill in range(kills + 1):
        group = Ranks(ranks, whole_run, job, folder=job.work.root)
        if kill == kills:
            group.results()
            return
        seen = len(events(job, "step"))
        wanted = rng.randint(1, 4)
        while len(events(job, "step")) - seen < wanted and group.running:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2)
        group.kill()


def check_equal_runs(folder: Path, dataset: Path, tokenizer: Path, *, ranks: int, kills: int, **options: Any) -> None:
    undisturbed = job_in(folder / "undisturbed", dataset, tokenizer, **options)
    killed = job_in(folder / "killed", dataset, tokenizer, **options)
    run_ranks(ranks, whole_run, undisturbed, folder=undisturbed.work.root)
    run_with_kills(killed, ranks, kills, seed=kills)
    assert weights_hash(killed) == weights_hash(undisturbed)
    assert [event["loss"] for event in events(killed, "eval")] == [e["loss"] for e in events(undisturbed, "eval")]
    steps, expected = events(killed, "step"), events(undisturbed, "step")
    assert [(event["step"], event["loss"], event["lr"]) for event in steps] == [
        (event["step"], event["loss"], event["lr"]) for event in expected
    ]


def test_killed_run_ends_equal(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    check_equal_runs(tmp_path, dataset, tokenizer_folder, ranks=2, kills=2, eval_interval=4)
