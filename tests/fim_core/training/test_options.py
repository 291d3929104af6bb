"""Each option of an experiment that concerns training does what it says, or is refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_functions import error_of_run, whole_run
from training_helpers import MODEL, data_options, make_rows, run_ranks, save_rows, tiny_experiment
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config

from fim_core.errors import FimError
from fim_core.modeling.load import build_model
from fim_core.training.deepspeed_config import deepspeed_config
from fim_core.training.job import Job, Work
from fim_core.training.optimizer import decay_groups
from fim_core.training.setup import beyond_context
from fim_core.training.trackers import open_trackers

LORA = {"config": MODEL, "tokenizer": "unused", "peft_config": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}


def train(
    folder: Path, dataset: Path, tokenizer: Path, ranks: int = 1, **options: Any
) -> tuple[Job, dict[str, Any], list[dict[str, Any]]]:
    """Run an experiment; returns its job, its result and its events."""
    job = Job(tiny_experiment(**options), dataset, tokenizer, Work(folder), "test", {"raw_completions": "abc123"})
    result = run_ranks(ranks, whole_run, job, folder=folder)[0]
    return job, result, [json.loads(line) for line in job.work.metrics.read_text().splitlines()]


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["event"] == "step"]


def test_run_and_its_model(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    job, result, events = train(
        tmp_path / "run",
        dataset,
        tokenizer_folder,
        epochs=3,
        eval_interval=4,
        checkpoint=[{"save_every_n_steps": 3, "output_dir": str(tmp_path / "out"), "keep": 2}],
    )
    # Uninitialised, the model is about as good as guessing; random rows can be learnt by heart, so the loss falls.
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, result["steps"] + 1))
    assert losses(events)[-1] < losses(events)[0]
    evals = [event["step"] for event in events if event["event"] == "eval"]
    assert evals == sorted({0, result["steps"], *range(4, result["steps"], 4)})
    assert result["loss_before"] == pytest.approx(torch.tensor(float(len(tokenizer))).log().item(), rel=0.1)
    assert result["rows"] == 3 * 40 == steps[-1]["rows_total"]
    assert result["distinct_tokens"] < result["tokens"]
    assert 0 < steps[-1]["mfu"] < 1.5
    assert steps[-1]["memory_bytes"] > 2**20
    kept = sorted((tmp_path / "out" / "tiny-run").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    assert [path.name for path in kept] == [f"step-{n}" for n in (3 * ((result["steps"] - 1) // 3), result["steps"])]

    model = AutoModelForCausalLM.from_pretrained(job.work.model)
    assert AutoTokenizer.from_pretrained(job.work.model).get_vocab() == tokenizer.get_vocab()
    assert GenerationConfig.from_pretrained(job.work.model).eos_token_id == [tokenizer.eos_token_id]
    assert not list(job.work.model.glob("*.bin"))
    assert not list(job.work.model.glob("*.pt"))
    last = AutoModelForCausalLM.from_pretrained(kept[-1])
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, last.state_dict()[name]), name
    card = (job.work.model / "README.md").read_text()
    assert "abc123" in card
    assert "<|fim_prefix|>{text before the cursor}<|fim_suffix|>" in card
    serving = json.loads((job.work.model / "fim.json").read_text())
    assert serving["fim_tokens"]["middle"] == "<|fim_middle|>"
    assert serving["model"]["config"] == MODEL


def test_what_is_shared_names_no_folder_of_this_machine(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    template = tmp_path / "own.tmpl"
    template.write_text("template of somebody")
    pretrained = tmp_path / "pretrained"
    train(tmp_path / "first", dataset, tokenizer_folder, max_steps=1)[0].work.model.rename(pretrained)
    data = data_options(template=str(template), sources=[{"name_or_path": str(tmp_path / "july.csv")}])
    job, _, _ = train(
        tmp_path / "run",
        dataset,
        tokenizer_folder,
        max_steps=1,
        model={"name_or_path": str(pretrained), "tokenizer": str(pretrained)},
        data=data | {"cache_dir": str(tmp_path / "cache")},
        checkpoint=[{"output_dir": str(tmp_path / "out")}],
        tensorboard={},
    )
    shared = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    shared += [
        path for path in job.work.root.rglob("*") if path.is_file() and path.parent.name not in ("state", "logs")
    ]
    named = [path.name for path in shared if str(tmp_path).encode() in path.read_bytes()]
    # These two stay in the run's own folder.
    assert set(named) <= {"job.json", "result.json"}
    recipe = json.loads((job.work.model / "fim.json").read_text())
    assert recipe["data"]["sources"][0]["name_or_path"] == "july.csv"
    assert (recipe["data"]["template"], recipe["model"]["name_or_path"]) == ("own.tmpl", "pretrained")
    assert "| base model | pretrained |" in (job.work.model / "README.md").read_text()
    rights = {path.stat().st_mode for path in job.work.model.iterdir()}
    assert len(rights) == 1, "all files are as readable as the umask has it"


def test_activation_checkpointing_changes_nothing(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    plain = train(tmp_path / "plain", dataset, tokenizer_folder, max_steps=3)[2]
    kept = train(tmp_path / "kept", dataset, tokenizer_folder, max_steps=3, activation_checkpointing=True)[2]
    offloaded = train(
        tmp_path / "offloaded", dataset, tokenizer_folder, max_steps=3, activation_checkpoint_cpu_offload=True
    )[2]
    assert losses(kept) == losses(plain)
    assert losses(offloaded) == losses(plain)


@pytest.mark.parametrize("stage", [1, 3])
def test_adapters_are_merged(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast, stage: int
) -> None:
    deepspeed = {"zero_optimization": {"stage": stage}}
    job, _, _ = train(tmp_path, dataset, tokenizer_folder, model=LORA, max_steps=4, deepspeed=deepspeed)
    before = build_model(tiny_experiment().model, tokenizer, seed=job.experiment.seed).state_dict()
    after = AutoModelForCausalLM.from_pretrained(job.work.model).state_dict()
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "q_proj" in name or "v_proj" in name}


def test_half_precision(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    model = {"config": MODEL, "tokenizer": "unused", "dtype": "bf16"}
    full = train(tmp_path / "full", dataset, tokenizer_folder, max_steps=4)[2]
    job, _, half = train(tmp_path / "half", dataset, tokenizer_folder, max_steps=4, model=model)
    assert losses(half) == pytest.approx(losses(full), rel=0.02)
    assert losses(half) != losses(full)
    assert AutoModelForCausalLM.from_pretrained(job.work.model).dtype == torch.bfloat16


def test_steps_with_nothing_to_train_on(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two ranks get through steps without a target, alone or together; such a step has no loss and is counted."""
    rows = make_rows(8, len(tokenizer), seed=5)
    for row in range(6):
        rows["labels"][row] = [-100] * len(rows["labels"][row])
    folder = save_rows(tmp_path / "rows", rows, make_rows(2, len(tokenizer), seed=6))
    data = {"sources": [{"type": "demo"}], "max_length": 64, "pack_samples": "none"}
    _, result, events = train(
        tmp_path / "run", folder, tokenizer_folder, ranks=2, data=data, gradient_accumulation_steps=1, epochs=2
    )
    empty = [event for event in events if event["event"] == "step" and event["targets"] == 0]
    assert result["steps"] == 8
    assert result["empty_steps"] == len(empty) >= 4
    assert all(event["loss"] == 0 for event in empty)


def test_loss_that_is_not_finite_names_its_rows(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    job = Job(tiny_experiment(loss={"z_loss": 1e38}), dataset, tokenizer_folder, Work(tmp_path), "test")
    kind, words = run_ranks(1, error_of_run, job, folder=tmp_path)[0]
    assert kind == "FimError"
    assert "not finite" in words
    assert "row-" in words


def test_nothing_to_train_on_at_all(tmp_path: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_rows(4, len(tokenizer), seed=7)
    rows["labels"] = [[-100] * len(labels) for labels in rows["labels"]]
    folder = save_rows(tmp_path / "rows", rows, rows)
    job = Job(tiny_experiment(), folder, tokenizer_folder, Work(tmp_path), "test")
    kind, words = run_ranks(1, error_of_run, job, folder=tmp_path)[0]
    assert kind == "FimError"
    assert "no position to train on" in words


def test_deepspeed_section_is_passed_on() -> None:
    section = {"gradient_clipping": 0.5, "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}
    experiment = tiny_experiment(deepspeed=section, micro_batch_size=3, gradient_accumulation_steps=4)
    config = deepspeed_config(experiment, world_size=2, dtype=torch.bfloat16)
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert config["train_batch_size"] == 24
    assert config["bf16"]["enabled"]
    assert not config["fp16"]["enabled"]


@pytest.mark.parametrize("package", ["wandb", "trackio", "tensorboard"])
def test_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FimError, match=f"pip install {package}"):
        open_trackers(tiny_experiment(**{package: {}}), Work(tmp_path), 0)
    assert open_trackers(tiny_experiment(**{package: {"enable": False}}), Work(tmp_path), 0) == []


def test_rows_beyond_the_models_context_are_told(caplog: pytest.LogCaptureFixture) -> None:
    config = Qwen3Config(max_position_embeddings=64)
    assert beyond_context(64, config) == ()
    [notice] = beyond_context(65, config)
    assert "65 tokens" in notice
    assert "made for 64" in notice
    assert caplog.messages == [notice]


def test_norms_and_biases_do_not_decay(tokenizer: PreTrainedTokenizerFast) -> None:
    config = MODEL | {"attention_bias": True}
    model = build_model(tiny_experiment(model={"config": config, "tokenizer": "x"}).model, tokenizer, seed=0)
    decayed, others = decay_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    plain = {names[id(parameter)] for parameter in others["params"]}
    assert plain == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert len(decayed["params"]) + len(plain) == len(names)
