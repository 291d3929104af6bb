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

STEPS, EVERY = 100, 25


def options(**content: Any) -> dict[str, Any]:
    return trained_checkpoint.options(Experiment.model_validate({**TINY, **content}))


def launchers(tmp_path: Path) -> list[dict[str, Any]]:
    """Two ranks under each launcher."""
    (tmp_path / "hosts").write_text("worker-1 slots=1\nworker-2 slots=1\n")
    return [
        {"num_processes": 2},
        {"type": "hostfile", "hostfile": str(tmp_path / "hosts")},
        {"type": "ray", "address": "http://head:8265", "num_gpus": 2},
        {"type": "kubernetes", "image": "fim", "volume_claim": "c", "mount_path": "/data", "num_gpus": 2},
    ]


def test_the_version_depends_neither_on_the_launcher_nor_on_the_number_of_ranks(tmp_path: Path) -> None:
    """tests/fim_core/training/test_loop.py shows that one and two ranks train the same weights, except for rounding."""
    assert all(options(launcher=launcher) == options() for launcher in launchers(tmp_path))


def test_the_version_depends_on_the_rows_of_a_step_however_they_are_given(tmp_path: Path) -> None:
    two = launchers(tmp_path)
    assert options() == options(batch_rows=16) != options(batch_rows=8)
    given = [options(micro_batch_size=4, gradient_accumulation_steps=2, launcher=launcher) for launcher in two]
    assert given == [options(batch_rows=16)] * len(two)
    assert options(micro_batch_size=4, gradient_accumulation_steps=2) == options(batch_rows=8), "on one rank"
    assert options(micro_batch_size=16, sequence_parallel_size=2, launcher=two[0]) == options(batch_rows=16)
    more = {"type": "hostfile", "hostfile": str(tmp_path / "hosts"), "num_processes": 2}
    assert options(micro_batch_size=4, launcher=more) == options(batch_rows=16), "two on each of two hosts"


@pytest.mark.parametrize(
    ("nodes", "tasks", "gpus", "rows"), [(2, "2(x2)", "", 16), (3, "1,2(x2)", "", 20), (2, "1", "a100:4", 32)]
)
def test_the_rows_of_a_step_follow_the_allocation(
    nodes: int, tasks: str, gpus: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocation = {"JOB_ID": "1", "JOB_NODELIST": "n[1-9]", "JOB_NUM_NODES": str(nodes), "TASKS_PER_NODE": tasks}
    for name, value in (allocation | {"GPUS_PER_NODE": gpus}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    launcher = {"type": "hostfile", "backend": "slurm"}
    assert options(micro_batch_size=4, launcher=launcher) == options(batch_rows=rows)


def test_the_version_depends_on_the_ranks_that_draw_random_numbers(tmp_path: Path) -> None:
    def with_dropout(**content: Any) -> dict[str, Any]:
        return options(model={**TINY["model"], "peft_config": {"lora_dropout": 0.1}}, **content)

    one, *two = [with_dropout(), *(with_dropout(launcher=launcher) for launcher in launchers(tmp_path))]
    assert one != two[0]
    assert two == [two[0]] * len(two)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "resid_pdrop": 0.1}')
    pretrained = {"model": {"name_or_path": str(tmp_path)}}
    assert options(**pretrained)["dropout"]["world_size"] == 1
    off = {"model": {"name_or_path": str(tmp_path), "hf_config_kwargs": {"resid_pdrop": 0}}}
    assert "dropout" not in options(**off)


def test_the_version_depends_on_clipping_and_not_on_memory_or_diagnostics() -> None:
    assert options() == options(deepspeed={"gradient_clipping": 1.0}) != options(deepspeed={"gradient_clipping": 0})
    assert options(deepspeed={"communication_data_type": "bf16"}) != options()
    for content in (
        {"deepspeed": {"wall_clock_breakdown": True, "steps_per_print": 10}},
        {"activation_checkpointing": True},
        {"tiled_mlp_compute": True},
        {"sequence_parallel_size": 2},
    ):
        assert options(**content) == options(), content


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
