"""The version and the content of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_pipeline import TINY, write_experiment

from fim_core.config import Experiment, load_experiment
from fim_core.pipeline import run
from fim_core.pipeline.stages.trained_checkpoint import trained_checkpoint

STEPS, EVERY = 400, 50


def options(**launcher: Any) -> dict[str, Any]:
    return trained_checkpoint.options(Experiment.model_validate({**TINY, "launcher": launcher}))


def test_the_version_depends_on_the_number_of_ranks_and_not_on_the_launcher() -> None:
    ray = {"type": "ray", "address": "http://head:8265", "num_gpus": 2}
    kubernetes = {"type": "kubernetes", "image": "fim", "volume_claim": "c", "mount_path": "/data"}
    hostfile = {"type": "hostfile", "hostfile": "hosts"}
    local = options(num_processes=2)
    assert [options(**place, num_processes=2) for place in (ray, kubernetes, hostfile)] == [local] * 3
    assert options(num_processes=1) != local


def test_the_version_depends_on_the_batch_size_and_not_on_its_notation() -> None:
    def version(**batch: int) -> dict[str, Any]:
        return trained_checkpoint.options(Experiment.model_validate({**TINY, **batch}))

    assert version() == version(batch_rows=16) != version(batch_rows=8)
    given = version(micro_batch_size=4, gradient_accumulation_steps=4)
    assert given == version(micro_batch_size=2, gradient_accumulation_steps=8) == version(micro_batch_size=16)
    assert given != version(), "on several ranks it is another batch"
    assert given != version(micro_batch_size=4)


def test_metrics_of_every_attempt_are_kept_with_the_checkpoint(tmp_path: Path) -> None:
    path = write_experiment(
        tmp_path,
        epochs=None,
        max_steps=STEPS,
        checkpoint={"type": "deepspeed", "save_every_n_steps": EVERY},
        tensorboard={"project": "sql", "name": "tiny"},
    )
    experiment = load_experiment(path)

    def stop_after_the_state(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" or event.get("resumed_from"):
            raise KeyboardInterrupt

    def stop_at_once(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(experiment, until="trained_checkpoint", on_event=stop_at_once)
    [work] = (experiment.storage / "work" / "trained_checkpoint").iterdir()
    (work / "packs" / ".epoch-0.parquet-1-ab").touch()  # as a kill leaves it
    with pytest.raises(KeyboardInterrupt):
        run(experiment, until="trained_checkpoint", on_event=stop_after_the_state)
    checkpoint = run(experiment, until="trained_checkpoint")["trained_checkpoint"].artifact
    # Ranks go on for a moment until they are stopped.
    assert checkpoint.counts["resumed_from"] in range(EVERY, STEPS + 1, EVERY)
    curves = EventAccumulator(str(checkpoint.path / "trackers" / "tensorboard" / "sql" / "tiny")).Reload()
    assert [point.step for point in curves.Scalars("train/loss")] == list(range(1, STEPS + 1))
    assert [point.step for point in curves.Scalars("eval/loss")] == [0, STEPS]
    assert list((checkpoint.path / "packs").glob(".*")) == []
