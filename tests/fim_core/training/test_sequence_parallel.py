"""Sequence parallelism: ranks that divide each pack get the loss and the gradient of the plain model on one row at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_functions import error_of_run, first_gradients, gradient_of_pack, whole_run
from test_checkpoint import check_equal_runs, curve, events, job_in
from test_loop import separate_rows
from training_helpers import FEW_ROWS, MODEL, Ranks, data_options, make_rows, run_ranks, save_rows, tiny_experiment
from transformers import PreTrainedTokenizerFast

from fim_core.training.job import Job, Work

RANKS = [(2, 2), (4, 4), (4, 2)]
"""Numbers of ranks, and sequence_parallel_size."""

Case = dict[str, Any]


def model_of(peft: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    return {"config": {**MODEL, "num_attention_heads": 4, **config}, "tokenizer": "unused", "peft_config": peft}


SLIDING = {
    "model_type": "gemma3_text",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 7,
    "query_pre_attn_scalar": 16,
}
MODELS = {
    "one key head": model_of(),
    "two key heads": model_of(num_key_value_heads=2),
    "sliding": model_of(**SLIDING),
    "softcap": model_of(model_type="gemma2", attn_logit_softcapping=20.0, query_pre_attn_scalar=16),  # dense masks
    "adapters": model_of({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
}
CASES: list[Case] = [
    {},
    {"packing": "flat", "sample": True, "stage": 3, "model": "two key heads", "checkpointing": True},
    {"packing": "none", "stage": 2, "model": "adapters"},
    {"pack_length": 64, "model": "sliding", "stage": 2},  # several micro-batches
]
MORE_CASES: list[Case] = [
    {"packing": "flat", "sample": True},
    {"packing": "none", "stage": 2},
    {"pack_length": 64, "stage": 2},
    {"pack_length": 64, "packing": "flat", "sample": True, "stage": 3},
    {"pack_length": 16, "sample": True},  # parts without a token to predict
    {"model": "two key heads", "stage": 3},
    {"model": "sliding", "pack_length": 200},
    {"model": "sliding", "packing": "flat", "sample": True, "checkpointing": True},
    {"model": "adapters", "checkpointing": True, "stage": 3},
    {"model": "softcap", "stage": 2},
    {"stage": 0},
]


@pytest.fixture(scope="module")
def expected(few_rows: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[[Case], tuple[float, dict[str, Any]]]:
    """The slow reference of a case: one row at a time through the plain model, in eager attention, then one mean over all."""
    known: dict[tuple[str, bool], tuple[float, dict[str, Any]]] = {}

    def of(case: Case) -> tuple[float, dict[str, Any]]:
        key = case.get("model", "one key head"), case.get("sample", False)
        if key not in known:
            known[key] = separate_rows(few_rows, tokenizer, key[1], model=MODELS[key[0]])
        return known[key]

    return of


def job_of(case: Case, size: int, dataset: Path, tokenizer: Path, work: Path) -> Job:
    experiment = tiny_experiment(
        model=MODELS[case.get("model", "one key head")],
        data=data_options(
            pack_samples=case.get("packing", "prefix_tree"),
            sample_weighted_loss=case.get("sample", False),
            pack_length=case.get("pack_length", 1000),
        ),
        batch_rows=FEW_ROWS,
        sequence_parallel_size=size,
        activation_checkpointing=case.get("checkpointing", False),
        deepspeed={"zero_optimization": {"stage": case.get("stage", 1), "stage3_param_persistence_threshold": 0}},
    )
    return Job(experiment, dataset, tokenizer, Work(work), "test")


@pytest.mark.parametrize(
    ("ranks", "size", "cases"),
    [
        *((ranks, size, CASES) for ranks, size in RANKS),
        *(pytest.param(ranks, size, MORE_CASES, marks=pytest.mark.slow) for ranks, size in RANKS),
    ],
)
def test_parts_of_packs_give_the_gradient_of_whole_rows(
    tmp_path: Path, few_rows: Path, tokenizer_folder: Path, expected: Any, ranks: int, size: int, cases: list[Case]
) -> None:
    jobs = [job_of(case, size, few_rows, tokenizer_folder, tmp_path / str(number)) for number, case in enumerate(cases)]
    for of_rank in run_ranks(ranks, first_gradients, jobs, folder=tmp_path):
        for case, (loss, gradients) in zip(cases, of_rank, strict=True):
            wanted_loss, wanted = expected(case)
            assert loss == pytest.approx(wanted_loss, rel=1e-5), case
            assert set(gradients) == set(wanted)
            for name, gradient in gradients.items():
                scale = np.abs(wanted[name]).max()
                np.testing.assert_allclose(
                    gradient, wanted[name], rtol=1e-5, atol=1e-5 * scale, err_msg=f"{case} {name}"
                )


def test_rows_of_a_pack_do_not_reach_each_other(tmp_path: Path, few_rows: Path, tokenizer_folder: Path) -> None:
    """The gradient of one row's loss at the embeddings of another row is exactly zero, across ranks too."""
    job = job_of({"packing": "flat"}, 2, few_rows, tokenizer_folder, tmp_path)
    parts = run_ranks(2, gradient_of_pack, job, 3, folder=tmp_path)
    gradient = np.concatenate([of_rank[0] for of_rank in parts])
    own = np.concatenate([of_rank[1] for of_rank in parts])
    assert len(gradient) % 2 == 0
    assert (np.abs(gradient[own][:-1]).max(axis=1) > 0).all()
    assert not gradient[~own].any()


def test_steps_without_a_token_to_predict(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tokenizer_folder: Path):
    """On one rank of each group, on all of them, and in a whole step; a group without a pack has none either."""
    rows = make_rows(5, len(tokenizer), seed=6)
    for index in range(4):
        rows["labels"][index] = [-100] * len(rows["labels"][index])
    dataset = save_rows(tmp_path, rows, make_rows(2, len(tokenizer), seed=7))
    options = {"batch_rows": 1, "epochs": 2, "data": data_options(pack_samples="none")}
    results = {}
    for ranks, size in ((1, 1), (2, 2), (4, 2)):
        folder = tmp_path / f"{ranks}-{size}"
        job = job_in(folder, dataset, tokenizer_folder, sequence_parallel_size=size, **options)
        results[ranks, size] = run_ranks(ranks, whole_run, job, folder=folder)[0]
        assert results[ranks, size]["empty_steps"] == 8
        assert results[ranks, size]["tokens"] == results[1, 1]["tokens"]
        assert results[ranks, size]["loss_after"] == pytest.approx(results[1, 1]["loss_after"], rel=1e-5)


def test_a_whole_run_counts_each_group_once(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    options = {"epochs": 2, "eval_interval": 2, "batch_rows": None, "micro_batch_size": 8}
    alone = job_in(tmp_path / "alone", dataset, tokenizer_folder, **options)
    divided = job_in(tmp_path / "divided", dataset, tokenizer_folder, sequence_parallel_size=2, **options)
    expected = run_ranks(1, whole_run, alone, folder=tmp_path / "alone")[0]
    found = run_ranks(2, whole_run, divided, folder=tmp_path / "divided")[0]
    counted = ("steps", "rows", "packs", "tokens", "distinct_tokens", "trained_tokens", "batch_rows")
    assert {name: found[name] for name in counted} == {name: expected[name] for name in counted}
    for name in ("loss_before", "loss_after", "train_loss_last"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)
    for step, reference in zip(curve(divided), curve(alone), strict=True):
        assert step == pytest.approx(reference, rel=1e-3)


def test_killed_run_ends_equal(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    check_equal_runs(
        tmp_path, dataset, tokenizer_folder, ranks=2, kills=1, epochs=2, eval_interval=4, sequence_parallel_size=2
    )


@pytest.mark.slow
def test_resume_with_another_size(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    """A state of two ranks that divide packs is resumed by one rank, and by two that do not."""
    whole = job_in(tmp_path / "whole", dataset, tokenizer_folder, epochs=2)
    run_ranks(1, whole_run, whole, folder=tmp_path / "whole")
    for ranks, stage in ((1, 1), (2, 3)):
        folder = tmp_path / f"{ranks}-{stage}"
        options = {"epochs": 2, "deepspeed": {"zero_optimization": {"stage": stage}}}
        begun = job_in(folder, dataset, tokenizer_folder, sequence_parallel_size=2, **options)
        run_with_stop(begun, at=4)
        rest = job_in(folder, dataset, tokenizer_folder, **options)
        result = run_ranks(ranks, whole_run, rest, folder=folder)[0]
        resumed = result["resumed_from"]  # the kill may come after later states too
        assert resumed >= 4
        for step, reference in zip(curve(rest)[resumed:], curve(whole)[resumed:], strict=True):
            assert step == pytest.approx(reference, rel=1e-5)


def run_with_stop(job: Job, at: int) -> None:
    """Train on two ranks, and kill them after the step `at`."""
    group = Ranks(2, whole_run, job, folder=job.work.root)
    while not any(event["step"] >= at for event in events(job, "checkpoint")):
        assert group.running
        time.sleep(0.005)
    group.kill()


def test_loss_that_is_not_finite_names_its_rows(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    job = job_in(tmp_path, dataset, tokenizer_folder, sequence_parallel_size=2, loss={"z_loss": 1e38})
    words = [text for kind, text in run_ranks(2, error_of_run, job, folder=tmp_path) if kind == "FimError"]
    assert words
    for text in words:
        assert "not finite" in text
        assert "row-" in text


@pytest.mark.parametrize(
    ("options", "ranks", "message"),
    [
        ({"sequence_parallel_size": 2}, 1, "sequence_parallel_size is 2, but the run has 1 ranks"),
        (
            {"sequence_parallel_size": 2, "model": model_of(num_attention_heads=3)},
            2,
            "the model's 3 attention heads cannot be divided equally among 2 ranks. Set it to one of 1, 3.",
        ),
        (
            {
                "sequence_parallel_size": 2,
                "model": model_of(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            },
            2,
            "which this model does not support: its rotary embedding (dynamic)",
        ),
    ],
)
def test_what_cannot_be_exact_is_refused(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, options: dict[str, Any], ranks: int, message: str
) -> None:
    job = job_in(tmp_path, dataset, tokenizer_folder, **options)
    for kind, text in run_ranks(ranks, error_of_run, job, folder=tmp_path):
        assert kind == "FimError"
        assert message in text
    assert not job.work.packs.exists()
