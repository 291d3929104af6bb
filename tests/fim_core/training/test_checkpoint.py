"""Resumption: a run that is killed and resumed ends with the weights of one that was never stopped."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rank_functions import error_of_run, whole_run
from training_helpers import Ranks, run_ranks, tiny_experiment

from fim_core.errors import FimError
from fim_core.training.checkpoint import newest_state
from fim_core.training.job import Job, Work

DROPOUT = {"peft_type": "LORA", "r": 4, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]}


def job_in(folder: Path, dataset: Path, tokenizer: Path, **options: Any) -> Job:
    content = {
        "epochs": 5,
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
    """Train; SIGKILL all ranks at random moments, and start again until the run ends."""
    rng = random.Random(seed)
    for _ in range(kills):
        group = Ranks(ranks, whole_run, job, folder=job.work.root)
        wanted = rng.randint(1, 4) + len(events(job, "step"))
        # A resumed run takes back the steps after its state, so the count may fall before it rises.
        while len(events(job, "step")) < wanted and group.running:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        assert group.running
        group.kill()
    run_ranks(ranks, whole_run, job, folder=job.work.root)


def check_equal_runs(folder: Path, dataset: Path, tokenizer: Path, *, ranks: int, kills: int, **options: Any) -> None:
    undisturbed = job_in(folder / "undisturbed", dataset, tokenizer, **options)
    killed = job_in(folder / "killed", dataset, tokenizer, **options)
    run_ranks(ranks, whole_run, undisturbed, folder=undisturbed.work.root)
    run_with_kills(killed, ranks, kills, seed=kills)
    assert weights_hash(killed) == weights_hash(undisturbed)
    assert curve(killed) == curve(undisturbed)
    assert [event["loss"] for event in events(killed, "eval")] == [e["loss"] for e in events(undisturbed, "eval")]


def curve(job: Job) -> list[tuple[Any, ...]]:
    """The figures of each step that a resumed run has to repeat."""
    keys = ("step", "epoch", "loss", "lr", "grad_norm", "rows_total")
    return [tuple(event[key] for key in keys) for event in events(job, "step")]


def test_killed_run_ends_equal(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    check_equal_runs(tmp_path, dataset, tokenizer_folder, ranks=2, kills=2, eval_interval=4)


def test_random_numbers_are_resumed(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    """Dropout draws from the random state of each rank."""
    options = tiny_experiment().model.model_dump() | {"peft_config": DROPOUT}
    check_equal_runs(
        tmp_path,
        dataset,
        tokenizer_folder,
        ranks=1,
        kills=1,
        model=options,
        batch_rows=4,
        max_steps=12,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "ranks", "dtype"), [(0, 1, "fp32"), (1, 2, "fp32"), (2, 2, "fp32"), (3, 2, "fp32"), (1, 2, "bf16")]
)
def test_killed_five_times(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, stage: int, ranks: int, dtype: str
) -> None:
    options = {
        "deepspeed": {"zero_optimization": {"stage": stage}, "gradient_clipping": 1.0},
        "model": tiny_experiment().model.model_dump() | {"dtype": dtype},
        "epochs": 8,
        "eval_interval": 5,
    }
    check_equal_runs(tmp_path, dataset, tokenizer_folder, ranks=ranks, kills=5, **options)


@pytest.mark.parametrize(
    ("stage", "before", "after", "batch"),
    [
        (1, 2, 1, {"batch_rows": 6}),
        (2, 1, 2, {"batch_rows": 6}),
        (3, 2, 1, {"batch_rows": 6}),
        # Without a stage, that of the state is kept.
        (None, 2, 1, {"batch_rows": 6}),
        (None, 1, 2, {"batch_rows": 6}),
        # Three rows on each of two ranks: one rank alone would take three by itself, but goes on with six.
        (1, 2, 1, {"batch_rows": None, "micro_batch_size": 3}),
    ],
)
def test_resume_on_another_number_of_ranks(
    tmp_path: Path,
    dataset: Path,
    tokenizer_folder: Path,
    stage: int | None,
    before: int,
    after: int,
    batch: dict[str, Any],
) -> None:
    """In the middle of an epoch: the steps take the same rows, so only the order of sums differs."""
    deepspeed = {} if stage is None else {"zero_optimization": {"stage": stage}}
    options = {"deepspeed": deepspeed, "epochs": 2, **batch}
    straight, moved = (job_in(tmp_path / name, dataset, tokenizer_folder, **options) for name in ("straight", "moved"))
    run_ranks(before, whole_run, straight, folder=straight.work.root)
    group = Ranks(before, whole_run, moved, folder=moved.work.root)
    while len(events(moved, "checkpoint")) < 1:
        time.sleep(0.005)
    group.kill()
    state = newest_state(moved.work.states, fingerprint_in(moved))
    assert state is not None
    assert state.position.batch > 0
    result = run_ranks(after, whole_run, moved, folder=moved.work.root)[0]
    assert result["resumed_from"] >= 2
    assert result["batch_rows"] == 6
    assert result["rows"] == 2 * 40
    assert [event["rows"] for event in events(moved, "step")] == [6, 6, 6, 6, 6, 6, 4] * 2
    assert [event["loss"] for event in events(moved, "step")] == pytest.approx(
        [event["loss"] for event in events(straight, "step")], rel=1e-4
    )


def fingerprint_in(job: Job) -> str:
    """The fingerprint of a job's newest state."""
    newest = max(job.work.states.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    return json.loads((newest / "state.json").read_text())["fingerprint"]


def test_another_batch_is_refused(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    run_ranks(1, whole_run, job_in(tmp_path, dataset, tokenizer_folder, epochs=1), folder=tmp_path)
    kind, words = run_ranks(
        1, error_of_run, job_in(tmp_path, dataset, tokenizer_folder, epochs=1, batch_rows=5), folder=tmp_path
    )[0]
    assert kind == "FimError"
    assert "saved with batch_rows 8, and the experiment has 5" in words


def damages(state: Path) -> dict[str, Callable[[], object]]:
    """Damages of a state: each of its files missing, empty, cut off or with one bit flipped, and worse for its marker."""
    found: dict[str, Callable[[], object]] = {}
    for path in sorted(path for path in state.rglob("*") if path.is_file()):
        content, name = path.read_bytes(), path.relative_to(state).as_posix()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        found[f"{name} gone"] = path.unlink
        found[f"{name} empty"] = partial(path.write_bytes, b"")
        found[f"{name} cut off"] = partial(path.write_bytes, content[: len(content) // 2])
        found[f"{name} with a flipped bit"] = partial(path.write_bytes, bytes(flipped))
    for content in (b"[]", b"{}", b"null", b'{"fingerprint": 1}', b"[" * 100_000):
        found[f"state.json of {content[:20]!r}"] = partial((state / "state.json").write_bytes, content)
    found["deepspeed gone"] = partial(shutil.rmtree, state / "deepspeed")
    return found


def test_an_older_state_is_used_where_the_newest_is_damaged(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path
) -> None:
    job = job_in(tmp_path / "run", dataset, tokenizer_folder, epochs=1)
    run_ranks(1, whole_run, job, folder=tmp_path)
    newest, older = (job.work.states / name for name in ("step-5", "step-4"))
    fingerprint = json.loads((newest / "state.json").read_text())["fingerprint"]
    copy = shutil.copytree(newest, tmp_path / "copy")
    attacks = damages(newest)
    assert len(attacks) > 15
    for name, attack in attacks.items():
        attack()
        found = newest_state(job.work.states, fingerprint)
        assert found is not None, name
        assert found.path == older, name
        shutil.rmtree(newest)
        shutil.copytree(copy, newest)
    found = newest_state(job.work.states, fingerprint)
    assert found is not None
    assert found.path == newest


@pytest.mark.parametrize("damaged", ["deepspeed", "marker"])
def test_a_run_with_a_damaged_state_ends_as_one_without(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, damaged: str
) -> None:
    """It resumes from the older state, and saves the step again in place of the damaged one."""
    straight, run = (job_in(tmp_path / name, dataset, tokenizer_folder, epochs=1) for name in ("straight", "run"))
    run_ranks(1, whole_run, straight, folder=straight.work.root)
    run_ranks(1, whole_run, run, folder=run.work.root)
    newest = run.work.states / "step-5"
    victim = newest / "state.json" if damaged == "marker" else next((newest / "deepspeed").glob("*model_states.pt"))
    victim.write_bytes(b"damaged")
    run.work.metrics.write_text(run.work.metrics.read_text() + '{"event": "st\n[1]\n' + "[" * 100_000 + "\n")
    result = run_ranks(1, whole_run, run, folder=run.work.root)[0]
    assert result["resumed_from"] == 4
    assert weights_hash(run) == weights_hash(straight)
    assert curve(run) == curve(straight)
    fingerprint = json.loads((run.work.states / "step-4" / "state.json").read_text())["fingerprint"]
    found = newest_state(run.work.states, fingerprint)
    assert found is not None
    assert found.position.step == 5


def test_state_of_other_options_is_refused(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    job = job_in(tmp_path, dataset, tokenizer_folder, epochs=1)
    run_ranks(1, whole_run, job, folder=tmp_path)
    with pytest.raises(FimError, match="other options"):
        newest_state(job.work.states, "another")
