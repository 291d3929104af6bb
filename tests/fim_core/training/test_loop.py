"""Training loop: loss and gradient do not depend on how an optimizer step is packed, accumulated or sharded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from rank_functions import first_gradient, first_gradients, stage_of_run, sums_of_gradients, whole_runs
from safetensors.torch import load_file
from training_helpers import FEW_ROWS, MODEL, data_options, run_ranks, tiny_experiment
from transformers import PreTrainedTokenizerFast

from fim_core.modeling.load import build_model
from fim_core.training.job import Job, Work


def separate_rows(
    dataset: Path, tokenizer: PreTrainedTokenizerFast, sample_mean: bool, **model: Any
) -> tuple[float, dict[str, Any]]:
    """The slow reference: one row at a time through the plain model, then one mean over all."""
    experiment = tiny_experiment(**model)
    model = build_model(experiment.model, tokenizer, seed=experiment.seed)
    model.set_attn_implementation("eager")
    terms, weights = [], []
    for row in datasets.load_from_disk(str(dataset / "dataset"))["train"]:
        labels = torch.tensor(row["labels"])
        trained = int((labels[1:] != -100).sum())
        if trained:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
            terms.append(loss / trained if sample_mean else loss)
            weights.append(1 if sample_mean else trained)
    mean = torch.stack(terms).sum() / sum(weights)
    mean.backward()
    return float(mean.detach()), {
        name: param.grad.numpy() for name, param in model.named_parameters() if param.requires_grad
    }


@pytest.mark.parametrize(
    ("packing", "sample_mean", "ranks", "pack_length", "stage"),
    [
        ("prefix_tree", False, 1, 1000, 0),
        ("prefix_tree", False, 1, 64, 1),
        ("prefix_tree", False, 2, 64, 1),
        ("flat", True, 2, 1000, 2),
        ("none", False, 2, 64, 2),
        ("none", True, 2, 64, 3),
        ("prefix_tree", False, 2, 1000, 3),
        ("prefix_tree", True, 2, 16, 0),
    ],
)
def test_same_rows_same_gradient(
    tmp_path: Path,
    few_rows: Path,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    packing: str,
    sample_mean: bool,
    ranks: int,
    pack_length: int,
    stage: int,
) -> None:
    experiment = tiny_experiment(
        data=data_options(pack_samples=packing, sample_weighted_loss=sample_mean, pack_length=pack_length),
        batch_rows=FEW_ROWS,
        deepspeed={"zero_optimization": {"stage": stage}},
    )
    job = Job(experiment, few_rows, tokenizer_folder, Work(tmp_path), "test")
    expected_loss, expected = separate_rows(few_rows, tokenizer, sample_mean)
    for loss, gradients in run_ranks(ranks, first_gradient, job, folder=tmp_path):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert set(gradients) == set(expected)
        for name, gradient in gradients.items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_of_the_vocabulary_are_added_up(
    tmp_path: Path,
    few_rows: Path,
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_folder: Path,
    stage: int,
    ranks: int,
) -> None:
    """Output layer and embeddings, tied and not, over several micro-batches, with each way that DeepSpeed takes them."""
    models = [
        {"model": {"config": {**MODEL, "tie_word_embeddings": tied}, "tokenizer": "unused"}} for tied in (True, False)
    ]
    jobs = []
    for number, model in enumerate(models):
        experiment = tiny_experiment(
            **model,
            data=data_options(pack_samples="none"),
            batch_rows=FEW_ROWS,
            deepspeed={"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}},
        )
        jobs.append(Job(experiment, few_rows, tokenizer_folder, Work(tmp_path / str(number)), "test"))
    wanted = [separate_rows(few_rows, tokenizer, False, **model)[1] for model in models]
    for of_rank in run_ranks(ranks, first_gradients, jobs, folder=tmp_path):
        for (_, gradients), expected in zip(of_rank, wanted, strict=True):
            for name, gradient in gradients.items():
                scale = np.abs(expected[name]).max()
                np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-6 * scale, err_msg=name)


@pytest.mark.parametrize(
    ("ranks", "options", "stage"),
    [
        (1, {}, 0),
        (2, {}, 1),
        (1, {"deepspeed": {"zero_optimization": {"stage": 2}}}, 2),
        (1, {"model": {"config": MODEL, "tokenizer": "unused", "dtype": "bf16"}}, 1),
    ],
)
def test_one_rank_partitions_nothing(
    tmp_path: Path, few_rows: Path, tokenizer_folder: Path, ranks: int, options: dict[str, Any], stage: int
) -> None:
    job = Job(tiny_experiment(**options), few_rows, tokenizer_folder, Work(tmp_path), "test")
    assert run_ranks(ranks, stage_of_run, job, folder=tmp_path) == [stage] * ranks


@pytest.mark.parametrize("sample_mean", [False, True])
def test_same_steps_and_weights_whatever_computes_them(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, sample_mean: bool
) -> None:
    """Losses step by step and the trained weights, over two epochs whose last batches are smaller."""

    def job_of(packing: str, ranks: int, pack_length: int, stage: int) -> Job:
        experiment = tiny_experiment(
            data=data_options(pack_samples=packing, sample_weighted_loss=sample_mean, pack_length=pack_length),
            batch_rows=12,
            epochs=2,
            deepspeed={"zero_optimization": {"stage": stage}},
        )
        work = Work(tmp_path / f"{packing}-{ranks}-{pack_length}-{stage}")
        return Job(experiment, dataset, tokenizer_folder, work, "test")

    def trained(job: Job) -> tuple[list[float], dict[str, torch.Tensor]]:
        events = [json.loads(line) for line in job.work.metrics.read_text().splitlines()]
        losses = [event["loss"] for event in events if event["event"] == "step"]
        return losses, load_file(job.work.model / "model.safetensors")

    one_rank = [("none", 64, 0), ("flat", 64, 1), ("prefix_tree", 8192, 1)]
    two_ranks = [("prefix_tree", 8192, 1), ("flat", 100, 2), ("none", 64, 3), ("prefix_tree", 40, 3)]
    jobs = []
    for ranks, cases in ((1, one_rank), (2, two_ranks)):
        jobs += [job_of(packing, ranks, pack_length, stage) for packing, pack_length, stage in cases]
        run_ranks(ranks, whole_runs, jobs[-len(cases) :], folder=tmp_path)
    expected_losses, expected = trained(jobs[0])
    assert len(expected_losses) == 8
    for job in jobs[1:]:
        losses, weights = trained(job)
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5, msg=f"{job.work.root}: {name}")


@pytest.mark.parametrize(("ranks", "sums"), [(1, [0]), (2, [1, 1])])
def test_one_rank_alone_does_not_sum_its_gradients(
    tmp_path: Path, few_rows: Path, tokenizer_folder: Path, ranks: int, sums: list[int]
) -> None:
    experiment = tiny_experiment(deepspeed={"zero_optimization": {"stage": 0}}, data=data_options(pack_length=32))
    job = Job(experiment, few_rows, tokenizer_folder, Work(tmp_path), "test")
    assert run_ranks(ranks, sums_of_gradients, job, folder=tmp_path) == sums


def test_the_number_of_ranks_decides_the_random_numbers_of_dropout(
    tmp_path: Path, few_rows: Path, tokenizer_folder: Path
) -> None:
    """So it is part of a checkpoint's version if there is dropout, and only then."""

    def gradient(ranks: int, dropout: float) -> np.ndarray:
        model = {"config": MODEL, "tokenizer": "unused", "peft_config": {"lora_dropout": dropout}}
        experiment = tiny_experiment(model=model, batch_rows=FEW_ROWS, data=data_options(pack_samples="none"))
        work = Work(tmp_path / f"{ranks}-{dropout}")
        job = Job(experiment, few_rows, tokenizer_folder, work, "test")
        gradients = run_ranks(ranks, first_gradient, job, folder=work.root)[0][1]
        return np.concatenate([gradients[name].ravel() for name in sorted(gradients)])

    def difference(dropout: float) -> float:
        one, two = gradient(1, dropout), gradient(2, dropout)
        return float(np.linalg.norm(one - two) / np.linalg.norm(one))

    assert difference(0.0) < 1e-5
    assert difference(0.3) > 1e-2
