"""ZeRO stage 3: a pretrained model is loaded in partitions, and trained as if it were whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_functions import first_gradient, shares_as_loaded, whole_run
from tiny_models import relative_difference
from training_helpers import MODEL, run_ranks, tiny_experiment
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fim_core.training.job import Job, Work

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module", params=[0, -7], ids=["same vocabulary", "growing vocabulary"])
def pretrained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A model on disk whose vocabulary is the tokenizer's, or lacks a few entries."""
    options = {key: value for key, value in MODEL.items() if key != "model_type"}
    vocabulary = len(tokenizer) + request.param
    config = AutoConfig.for_model(
        "qwen3", **options, vocab_size=vocabulary, pad_token_id=None, tie_word_embeddings=True
    )
    folder = tmp_path_factory.mktemp("pretrained")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def job_of(pretrained: Path, work: Path, dataset: Path, tokenizer: Path, *, stage: int, **model: Any) -> Job:
    experiment = tiny_experiment(
        model={"name_or_path": str(pretrained), **model},
        deepspeed={"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
        epochs=1,
    )
    return Job(experiment, dataset, tokenizer, Work(work), "test")


def test_a_pretrained_model_is_read_in_parts(
    tmp_path: Path, pretrained: Path, dataset: Path, tokenizer_folder: Path
) -> None:
    parted = job_of(pretrained, tmp_path / "parted", dataset, tokenizer_folder, stage=3)
    for shares in run_ranks(2, shares_as_loaded, parted, folder=tmp_path):
        # Enlarged embeddings are new tensors, which DeepSpeed partitions when it is initialized.
        assert all(share <= 0.55 for name, share in shares.items() if "embed" not in name)
    whole = job_of(pretrained, tmp_path / "whole", dataset, tokenizer_folder, stage=0)
    loss, expected = run_ranks(1, first_gradient, whole, folder=tmp_path)[0]
    for found, gradients in run_ranks(2, first_gradient, parted, folder=tmp_path):
        assert found == pytest.approx(loss, rel=1e-5)
        for name, gradient in expected.items():
            np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("model", [{}, {"peft_config": LORA}], ids=["all weights", "adapters"])
def test_the_whole_model_is_exported(
    tmp_path: Path, pretrained: Path, dataset: Path, tokenizer_folder: Path, model: dict[str, Any]
) -> None:
    start = AutoModelForCausalLM.from_pretrained(pretrained).state_dict()
    changes = {}
    for name, stage, ranks in (("whole", 0, 1), ("parted", 3, 2)):
        job = job_of(pretrained, tmp_path / name, dataset, tokenizer_folder, stage=stage, **model)
        run_ranks(ranks, whole_run, job, folder=tmp_path / name)
        trained = AutoModelForCausalLM.from_pretrained(job.work.model).state_dict()
        assert set(trained) == set(start)
        changes[name] = torch.cat([(trained[key][: len(start[key])] - start[key]).flatten() for key in start])
    assert changes["whole"].norm() > 0
    # Adam divides by a gradient's size, so roundings show where a gradient is next to nothing.
    assert relative_difference(changes["parted"], changes["whole"]) < 0.01
