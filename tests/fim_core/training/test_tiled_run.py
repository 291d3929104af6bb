"""Training runs in tiles of tokens, with every way that ZeRO shards a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_functions import first_gradient, gradient_of, in_tiles, losses_of_run
from training_helpers import MODEL, data_options, run_ranks, tiny_experiment

from fim_core.training.job import Job, Work

pytestmark = pytest.mark.slow

LORA = {"r": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "up_proj", "down_proj"]}


def job_of(folder: Path, dataset: Path, tokenizer: Path, *, stage: int, adapters: bool = False, **options: Any) -> Job:
    """A run whose packs are single rows, so that ranks have different numbers of tiles."""
    model: dict[str, Any] = {"config": MODEL, "tokenizer": "unused"}
    experiment = tiny_experiment(
        model=model | ({"peft_config": LORA} if adapters else {}),
        data=data_options(pack_samples="none"),
        deepspeed={"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
        **options,
    )
    return Job(experiment, dataset, tokenizer, Work(folder), "test")


@pytest.mark.parametrize("adapters", [False, True], ids=["all weights", "adapters"])
def test_the_gradient_of_a_step_is_that_without_tiles(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, adapters: bool
) -> None:
    plain = job_of(tmp_path / "plain", dataset, tokenizer_folder, stage=0, adapters=adapters)
    ((loss, expected),) = run_ranks(1, first_gradient, plain, folder=tmp_path)
    tiled = [
        job_of(
            tmp_path / f"{stage}-{recompute}",
            dataset,
            tokenizer_folder,
            stage=stage,
            adapters=adapters,
            tiled_mlp_compute=True,
            activation_checkpointing=recompute,
        )
        for stage in (1, 2, 3)
        for recompute in (False, True)
    ]
    for results in run_ranks(2, in_tiles, gradient_of, tiled, folder=tmp_path):
        for found, gradients in results:
            assert found == pytest.approx(loss, rel=1e-5)
            assert set(gradients) == set(expected)
            for name, gradient in expected.items():
                np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


def test_a_run_ends_as_one_without_tiles(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    """Several steps and evaluations, in which DeepSpeed fetches weights ahead in the order of the step before."""

    def run(name: str, **options: Any) -> Job:
        return job_of(tmp_path / name, dataset, tokenizer_folder, stage=3, eval_interval=2, max_steps=5, **options)

    ((plain,),) = run_ranks(1, in_tiles, losses_of_run, [run("plain")], folder=tmp_path)
    tiled = [run(f"{on}", tiled_mlp_compute=True, activation_checkpointing=on) for on in (False, True)]
    for results in run_ranks(2, in_tiles, losses_of_run, tiled, folder=tmp_path):
        for found in results:
            assert found == pytest.approx(plain, rel=1e-4)
