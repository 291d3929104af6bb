"""Rows of a real export with a full vocabulary: the same loss and gradient however a step is packed and sharded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from rank_functions import differences
from safetensors.torch import save_file
from training_helpers import run_ranks, tiny_experiment

from fim_core.config import DataConfig, ModelConfig
from fim_core.packing import plan_packs
from fim_core.prompt_format.tokens import load_tokenizer
from fim_core.prompts import write_fim_prompts
from fim_core.records.sources import write_raw_completions
from fim_core.tokenization import load_rows, tokenize_prompts
from fim_core.training.export import build_for
from fim_core.training.job import Job, Work

pytestmark = pytest.mark.slow

ROWS = 40
MAX_LENGTH = 1024
VOCABULARY = 151_936
BODY = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FIM_REAL_CSV in the tokens of FIM_REAL_TOKENIZER; `sample/` has whole packs of its plan, some ROWS rows."""
    export, place = os.environ.get("FIM_REAL_CSV"), os.environ.get("FIM_REAL_TOKENIZER")
    if not export or not place:
        pytest.skip("FIM_REAL_CSV and FIM_REAL_TOKENIZER are not set")
    folder = tmp_path_factory.mktemp("real")
    source = {"type": "fim_completions", "name_or_path": export}
    data = DataConfig.model_validate({"sources": [source], "max_length": MAX_LENGTH, "eval_fraction": 0})
    write_raw_completions(data, folder / "raw.parquet")
    model = ModelConfig(config={"model_type": "qwen3"}, tokenizer="given")
    tokenizer = load_tokenizer(place)
    write_fim_prompts(folder / "raw.parquet", folder / "prompts", data=data, model=model, tokenizer=tokenizer, seed=0)
    tokenize_prompts(folder / "prompts", folder / "tokens", data=data)
    members: list[int] = []
    for pack in plan_packs(load_rows(folder / "tokens", "train"), strategy="prefix_tree", pack_length=MAX_LENGTH):
        members += pack.rows.tolist()
        if len(members) >= ROWS:
            break
    table = datasets.load_from_disk(str(folder / "tokens" / "dataset"))["train"].select(members).flatten_indices()
    splits = datasets.DatasetDict({"train": table, "eval": table.select([0])})
    splits.save_to_disk(str(folder / "sample" / "dataset"))
    return folder


def job_of(prepared: Path, work: Path, *, ranks: int, stage: int, **options: Any) -> Job:
    """All rows in one optimizer step, divided as the options say."""
    experiment = tiny_experiment(
        model={"config": BODY, "tokenizer": "unused"},
        data={
            "sources": [{"type": "demo"}],
            "max_length": MAX_LENGTH,
            "pack_length": options["pack_length"],
            "pack_samples": options["packing"],
            "sample_weighted_loss": options["sample_mean"],
        },
        batch_rows=len(load_rows(prepared / "sample", "train")),
        deepspeed={"zero_optimization": {"stage": stage}},
    )
    return Job(experiment, prepared / "sample", prepared / "prompts" / "tokenizer", Work(work), "test")


@pytest.fixture(scope="module")
def reference(prepared: Path) -> Path:
    """The slow reference in float64: one row at a time through the plain model; both means of all rows."""
    job = job_of(prepared, prepared, ranks=1, stage=1, packing="none", pack_length=MAX_LENGTH, sample_mean=False)
    model = build_for(job, load_tokenizer(job.tokenizer), torch.device("cpu")).double()
    model.set_attn_implementation("eager")
    names, parameters = zip(*model.named_parameters(), strict=True)
    sums = {
        f"{mean}/{name}": torch.zeros_like(p)
        for mean in ("token", "sample")
        for name, p in zip(names, parameters, strict=True)
    }
    sums |= {mean: torch.zeros((), dtype=torch.float64) for mean in ("token", "sample")}
    weights = {"token": 0, "sample": 0}
    for row in datasets.load_from_disk(str(prepared / "sample" / "dataset"))["train"]:
        labels = torch.tensor(row["labels"])[1:]
        count = int((labels != -100).sum())
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        gradients = torch.autograd.grad(loss, parameters)
        for mean, divisor, weight in (("token", 1, count), ("sample", count, 1)):
            weights[mean] += weight
            sums[mean] += loss.detach() / divisor
            for name, gradient in zip(names, gradients, strict=True):
                sums[f"{mean}/{name}"] += gradient / divisor
    means = {name: value / weights[name.split("/")[0]] for name, value in sums.items()}
    save_file(means, prepared / "reference.safetensors")
    return prepared / "reference.safetensors"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_loss_and_gradient_are_those_of_separate_rows(
    tmp_path: Path, prepared: Path, reference: Path, stage: int, ranks: int
) -> None:
    """In float32 to 1e-5, with every packing, either mean, and packs of two sizes."""
    jobs = {
        f"{packing}, {'sample' if sample_mean else 'token'} mean, packs of {pack_length}": job_of(
            prepared,
            tmp_path / f"{packing}-{sample_mean}-{pack_length}",
            ranks=ranks,
            stage=stage,
            packing=packing,
            sample_mean=sample_mean,
            pack_length=pack_length,
        )
        for packing in ("prefix_tree", "flat", "none")
        for sample_mean in (False, True)
        for pack_length in (MAX_LENGTH, 8 * MAX_LENGTH)
    }
    answers = run_ranks(ranks, differences, list(jobs.values()), reference, folder=tmp_path, timeout=1800)
    for name, *of_ranks in zip(jobs, *answers, strict=True):
        loss, whole, worst = map(max, zip(*of_ranks, strict=True))
        print(f"ZeRO {stage}, {ranks} rank(s), {name}: loss {loss:.1e}, gradient {whole:.1e}, worst {worst:.1e}")
        assert loss < 1e-5, name
        assert whole < 1e-5, name
        assert worst < 1e-5, name
