"""Training options of an experiment: each has its effect, or is refused by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rank_functions import error_of_run, logged_lines, norm_before_and_after_clipping, whole_run
from safetensors.torch import load_file
from training_helpers import MODEL, data_options, make_rows, run_ranks, save_rows, tiny_experiment
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast, Qwen3Config

from fim_core.errors import FimError
from fim_core.modeling.load import build_model
from fim_core.modeling.save import save_model
from fim_core.prompt_format.recipe import read_recipe
from fim_core.training.deepspeed_config import deepspeed_config
from fim_core.training.job import Job, Work
from fim_core.training.optimizer import decay_groups
from fim_core.training.run import context_notices, few_steps_notices
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
    assert "mfu" not in steps[-1], "a CPU has no peak to take a share of"
    assert steps[-1]["memory_bytes"] > 2**20
    kept = sorted((tmp_path / "out" / "tiny-run").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    assert [path.name for path in kept] == [f"step-{n}" for n in (3 * ((result["steps"] - 1) // 3), result["steps"])]

    model = AutoModelForCausalLM.from_pretrained(job.work.model)
    assert AutoTokenizer.from_pretrained(job.work.model).get_vocab() == tokenizer.get_vocab()
    assert GenerationConfig.from_pretrained(job.work.model).eos_token_id == list(
        read_recipe(tokenizer_folder.parent).fim_tokens.end_ids
    )
    assert not list(job.work.model.glob("*.bin"))
    assert not list(job.work.model.glob("*.pt"))
    last = AutoModelForCausalLM.from_pretrained(kept[-1])
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, last.state_dict()[name]), name
    assert read_recipe(job.work.model) == read_recipe(tokenizer_folder.parent)


def rates(events: list[dict[str, Any]]) -> list[float]:
    return [event["lr"] for event in events if event["event"] == "step"]


def test_a_run_that_exits_early_follows_the_schedule_of_the_whole(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path
) -> None:
    slow = {"warmup_ratio": 0.2}
    whole = train(tmp_path / "whole", dataset, tokenizer_folder, epochs=3, scheduler=slow)[2]
    _, result, early = train(tmp_path / "early", dataset, tokenizer_folder, epochs=3, exit_iteration=4, scheduler=slow)
    assert len(losses(whole)) > 4
    assert (losses(early), rates(early)) == (losses(whole)[:4], rates(whole)[:4])
    warmup = rates(whole).index(max(rates(whole)))
    said = next(event["warmup_steps"] for event in early if event["event"] == "start")
    assert (said, result["warmup_steps"]) == (warmup, warmup)
    assert any("raise exit_iteration" in notice for notice in result["notices"])
    shorter = train(tmp_path / "shorter", dataset, tokenizer_folder, epochs=3, max_steps=4)[2]
    assert rates(shorter)[3] < rates(early)[3]


def test_rows_are_repeated_up_to_the_minimum_of_steps(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    once = train(tmp_path / "once", dataset, tokenizer_folder)[2]
    wanted = 2 * len(losses(once)) + 1
    least = train(tmp_path / "least", dataset, tokenizer_folder, min_steps=wanted)[2]
    exact = train(tmp_path / "exact", dataset, tokenizer_folder, epochs=None, max_steps=wanted)[2]
    assert len(losses(least)) == wanted
    assert losses(least) == losses(exact)
    assert [event["epoch"] for event in least if event["event"] == "step"][-1] == 2


def test_states_and_weights_are_saved_by_epoch(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    entries = [
        {"type": "deepspeed", "save_every_n_epochs": 1, "save_end_of_training": False, "keep": 9},
        {"save_every_n_epochs": 2, "output_dir": str(tmp_path / "out"), "keep": 9},
    ]
    _, result, events = train(tmp_path / "run", dataset, tokenizer_folder, epochs=4, checkpoint=entries)
    saved = {kind: [e["step"] for e in events if e["event"] == "checkpoint" and e["type"] == kind] for kind in
             ("deepspeed", "huggingface")}  # fmt: skip
    ends = [result["steps"] * (epoch + 1) // 4 for epoch in range(4)]
    assert saved == {"deepspeed": ends, "huggingface": ends[1::2]}


@pytest.mark.parametrize(("interval", "shown"), [(0, []), (2, [2, 4]), (1, [1, 2, 3, 4])])
def test_the_loss_is_logged_at_its_interval(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, interval: int, shown: list[int]
) -> None:
    job = Job(
        tiny_experiment(max_steps=4, loss_log_interval=interval), dataset, tokenizer_folder, Work(tmp_path), "test"
    )
    (lines,) = run_ranks(1, logged_lines, job, folder=tmp_path)
    assert [int(line.split()[1]) for line in lines if line.startswith("step ")] == shown


def test_shared_files_name_no_folder_of_this_machine(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
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


@pytest.mark.parametrize("adapters", [False, True])
def test_a_tuned_model_keeps_the_number_format_of_its_base(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast, adapters: bool
) -> None:
    base = build_model(tiny_experiment().model, tokenizer, seed=1).to(torch.bfloat16)
    save_model(base, tokenizer, [tokenizer.eos_token_id], tmp_path / "base")
    model = {"name_or_path": str(tmp_path / "base")} | ({"peft_config": {"r": 4}} if adapters else {})
    checkpoint = [{"save_every_n_steps": 1, "output_dir": str(tmp_path / "out")}]
    job, _, events = train(tmp_path / "run", dataset, tokenizer_folder, model=model, max_steps=2, checkpoint=checkpoint)
    start = events[0]
    assert start["trains"] == ("adapters" if adapters else "pretrained")
    assert (start["lr"], start["warmup_steps"], start["gradient_clipping"]) == (0.01, 2, 1.0)
    for folder in (job.work.model, tmp_path / "out" / "tiny-run" / "step-1"):
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
        weights = load_file(folder / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
        assert any(not torch.equal(weight, base.state_dict()[name]) for name, weight in weights.items())


@pytest.mark.parametrize("clipping", [None, 0.5, 0])
@pytest.mark.parametrize("stage", [0, 1])
def test_gradients_are_clipped_as_the_experiment_says(
    tmp_path: Path, dataset: Path, tokenizer_folder: Path, clipping: float | None, stage: int
) -> None:
    """The first moment of Adam after one step is (1 - beta1) times the gradient that it was given."""
    deepspeed: dict[str, Any] = {"zero_optimization": {"stage": stage}}
    deepspeed |= {} if clipping is None else {"gradient_clipping": clipping}
    experiment = tiny_experiment(deepspeed=deepspeed, loss={"z_loss": 1.0}, max_steps=1)
    limit = 1.0 if clipping is None else float(clipping)
    assert experiment.deepspeed["gradient_clipping"] == limit
    job = Job(experiment, dataset, tokenizer_folder, Work(tmp_path), "test")
    norm, clipped = run_ranks(1, norm_before_and_after_clipping, job, folder=tmp_path)[0]
    assert norm > 1.5
    assert clipped == pytest.approx(limit or norm, rel=1e-3)


def test_steps_with_nothing_to_train_on(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two ranks get through steps without a target, alone or together; such a step has no loss and is counted."""
    rows = make_rows(8, len(tokenizer), seed=5)
    for row in range(6):
        rows["labels"][row] = [-100] * len(rows["labels"][row])
    folder = save_rows(tmp_path / "rows", rows, make_rows(2, len(tokenizer), seed=6))
    data = {"sources": [{"type": "demo"}], "max_length": 64, "pack_samples": "none"}
    _, result, events = train(tmp_path / "run", folder, tokenizer_folder, ranks=2, data=data, batch_rows=2, epochs=2)
    empty = [event for event in events if event["event"] == "step" and event["trained_tokens"] == 0]
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
    experiment = tiny_experiment(deepspeed=section)
    config = deepspeed_config(experiment, world_size=2, dtype=torch.bfloat16)
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert config["bf16"]["enabled"]
    assert not config["fp16"]["enabled"]


@pytest.mark.parametrize(("size", "expected"), [(2, "bf16"), (1, None)])
def test_gradients_of_divided_packs_are_summed_in_the_format_asked_for(size: int, expected: str | None) -> None:
    section = {"seq_parallel_communication_data_type": "bf16"}
    experiment = tiny_experiment(deepspeed=section, sequence_parallel_size=size)
    config = deepspeed_config(experiment, world_size=2, dtype=torch.float32)
    assert config.get("communication_data_type") == expected
    assert "seq_parallel_communication_data_type" not in config


def test_two_formats_for_sums_of_gradients_are_refused() -> None:
    section = {"seq_parallel_communication_data_type": "bf16", "communication_data_type": "fp32"}
    with pytest.raises(ValueError, match="communication_data_type and seq_parallel_communication_data_type differ"):
        tiny_experiment(deepspeed=section, sequence_parallel_size=2)


@pytest.mark.parametrize("package", ["wandb", "trackio", "tensorboard"])
def test_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FimError, match=f"pip install {package}"):
        open_trackers(tiny_experiment(**{package: {}}), Work(tmp_path), 0)
    assert open_trackers(tiny_experiment(**{package: {"enable": False}}), Work(tmp_path), 0) == []


def test_a_run_of_few_steps_is_warned_about(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    assert few_steps_notices(50, 800, 16, tiny_experiment()) == ()
    [notice] = few_steps_notices(5, 40, 8, tiny_experiment())
    assert "takes only 5 optimizer steps (40 rows, 8 per step, epochs: 1)" in notice
    assert "lower batch_rows, or raise epochs." in notice
    assert "raise max_steps" in few_steps_notices(3, 40, 8, tiny_experiment(max_steps=3))[0]
    assert (
        "lower micro_batch_size" in few_steps_notices(5, 40, 8, tiny_experiment(batch_rows=None, micro_batch_size=8))[0]
    )
    _, result, events = train(tmp_path, dataset, tokenizer_folder)
    assert result["notices"] == (notice,)
    assert [event["message"] for event in events if event["event"] == "warning"] == [notice]


def test_a_folder_may_have_any_name(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    job, _, _ = train(tmp_path / "my work #1 100%20?x=y", dataset, tokenizer_folder, max_steps=1)
    assert (job.work.model / "model.safetensors").is_file()


def test_step_events_add_up_to_the_result(tmp_path: Path, dataset: Path, tokenizer_folder: Path) -> None:
    data = {"sources": [{"type": "demo"}], "pack_samples": "flat", "pack_length": 64}
    _, result, events = train(tmp_path, dataset, tokenizer_folder, data=data, batch_rows=7)
    steps = [event for event in events if event["event"] == "step"]
    assert [event["rows"] for event in steps] == [7, 7, 7, 7, 7, 5]
    assert result["steps"] == 6
    assert result["batch_rows"] == 7
    for key in ("rows", "packs", "tokens", "trained_tokens", "distinct_tokens"):
        assert result[key] == sum(event[key] for event in steps) > 0
    assert all(event["tokens"] / 64 < event["packs"] <= event["rows"] for event in steps)


def test_wandb_gets_the_entity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    package = ModuleType("wandb")
    package.init = lambda **options: asked.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    for section in ({"entity": "us", "project": "p"}, {"project": "p"}):
        open_trackers(tiny_experiment(wandb=section), Work(tmp_path), 0)
    assert [options.get("entity", "none") for options in asked] == ["us", "none"]
    assert [options["project"] for options in asked] == ["p", "p"]


def test_rows_beyond_the_context_of_the_model_are_reported() -> None:
    config = Qwen3Config(max_position_embeddings=64)
    assert context_notices(64, config) == ()
    [notice] = context_notices(65, config)
    assert "65 tokens" in notice
    assert "context is 64" in notice


def test_norms_and_biases_do_not_decay(tokenizer: PreTrainedTokenizerFast) -> None:
    config = MODEL | {"attention_bias": True}
    model = build_model(tiny_experiment(model={"config": config, "tokenizer": "x"}).model, tokenizer, seed=0)
    decayed, others = decay_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    plain = {names[id(parameter)] for parameter in others["params"]}
    assert plain == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert len(decayed["params"]) + len(plain) == len(names)
