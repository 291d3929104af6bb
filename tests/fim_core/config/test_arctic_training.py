"""Files of ArcticTraining: every key is accepted or refused by name, and differing defaults are reported.

The keys below are written down from its configuration classes (config/*.py and data/*.py, version of 2025), those of its
SFT trainer only. GUIDE_KEYS are further keys from its guide for completion models.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fim_core.config import Experiment, load_experiment, read_experiment_file
from fim_core.config.arctic_training.defaults import differences
from fim_core.config.arctic_training.keys import KEYS, markdown_table
from fim_core.config.arctic_training.translate import translate
from fim_core.config.experiment_file import ExperimentFile
from fim_core.errors import FimError

BASE = {"model": {"name_or_path": "m"}, "data": {"sources": [{"name_or_path": "d"}]}}

TRAINER = """type code skip_validation local_rank global_rank world_size deepspeed epochs loss_log_interval
train_log_iter_interval train_log_metrics_path gradient_accumulation_steps micro_batch_size sequence_parallel_size
expert_parallel_size arctic_moe enable_arctic_moe_custom_optimization enable_routing_replay
activation_checkpoint_cpu_offload tiled_mlp_compute seed train_iters eval_interval eval_log_iter_interval exit_iteration
exit_iteration_this_run min_iterations overfit_first_batch mem_profiler mem_profiler_dir mem_profiler_max_entries
kill_switch_path"""
SECTIONS = {
    "model": "type name_or_path dtype save_name attn_implementation disable_activation_checkpoint peft_config "
    "hf_config_kwargs",
    "tokenizer": "type name_or_path tokenize_kwargs",
    "data": "type train_eval_split max_length num_proc dl_num_workers seed use_data_cache cache_processed_data cache_dir "
    "cache_fs_type fail_on_missing_cache div_length mask_inputs always_max_length pad_to filter_samples pack_samples "
    "drop_last fuse_positions_prob repeat_to_pack_max_length ignore_empty_think",
    "logger": "output_dir level print_output_ranks file_output_ranks",
    "wandb": "enable entity project name",
    "scheduler": "type learning_rate lr name warmup_ratio scheduler_specific_kwargs",
    "optimizer": "type weight_decay betas learning_rate lr",
    "checkpoint[]": "type output_dir enabled auto_resume save_every_n_steps save_every_n_epochs save_end_of_training",
    "data.sources[]": "type split sample_ratio sample_count sample_seed process name_or_path kwargs split_mapping "
    "role_mapping content_key sql table_name column_mapping limit batch_size dataset_uri",
}
SECTIONS["data.eval_sources[]"] = SECTIONS["data.sources[]"]
GUIDE_KEYS = {"data.sample_weighted_loss", "eval_frequency"}
REFERENCE_KEYS = {*TRAINER.split(), *(f"{part}.{key}" for part, keys in SECTIONS.items() for key in keys.split())}

# A value that asks for something other than what is done anyway, and what the experiment then holds (None: refused).
ACCEPTED: dict[str, tuple[Any, Any]] = {
    "type": ("sft", lambda e: e.type == "sft"),
    "deepspeed": ({"zero_optimization": {"stage": 2}}, lambda e: e.deepspeed["zero_optimization"] == {"stage": 2}),
    "epochs": (3, lambda e: e.epochs == 3),
    "loss_log_interval": ("5", lambda e: e.loss_log_interval == 5),
    "gradient_accumulation_steps": (4, lambda e: e.gradient_accumulation_steps == 4),
    "micro_batch_size": (2, lambda e: e.micro_batch_size == 2),
    "activation_checkpoint_cpu_offload": (True, lambda e: e.activation_checkpoint_cpu_offload),
    "sequence_parallel_size": ("2", lambda e: e.sequence_parallel_size == 2),
    "tiled_mlp_compute": (True, lambda e: e.tiled_mlp_compute),
    "seed": (7, lambda e: e.seed == 7),
    "train_iters": ("3k", lambda e: (e.max_steps, e.epochs) == (3000, None)),
    "eval_interval": (50, lambda e: e.eval_interval == 50),
    "eval_frequency": (50, lambda e: e.eval_interval == 50),
    "exit_iteration": (9, lambda e: (e.exit_iteration, e.epochs, e.max_steps) == (9, 1, None)),
    "min_iterations": ("1k", lambda e: (e.min_steps, e.epochs) == (1000, 1)),
    "model.type": ("liger", lambda e: e.model.type == "liger"),
    "model.name_or_path": ("other", lambda e: e.model.name_or_path == "other"),
    "model.dtype": ("torch.float16", lambda e: e.model.dtype == "fp16"),
    "model.attn_implementation": ("sdpa", lambda e: e.model.attn_implementation == "sdpa"),
    "model.disable_activation_checkpoint": (False, lambda e: e.activation_checkpointing),
    "model.peft_config": (
        {"peft_type": "Lora", "r": 4, "task_type": "CAUSAL_LM"},
        lambda e: (e.model.peft_config.peft_type, e.model.peft_config.r) == ("LORA", 4),
    ),
    "model.hf_config_kwargs": (
        {"attention_dropout": 0.1},
        lambda e: e.model.hf_config_kwargs == {"attention_dropout": 0.1},
    ),
    "tokenizer.name_or_path": ("t", lambda e: e.model.tokenizer == "t"),
    "data.type": ("sft", lambda e: e.data.type == "sft"),
    "data.train_eval_split": ([0.8, 0.2], lambda e: e.data.eval_fraction == 0.2),
    "data.max_length": ("4Ki", lambda e: e.data.max_length == 4096),
    "data.num_proc": (3, lambda e: e.data.num_proc == 3),
    "data.seed": (42, lambda e: e.seed == 42),
    "data.cache_dir": ("/c", lambda e: e.data.cache_dir == "/c"),
    "data.mask_inputs": (False, lambda e: not e.data.mask_inputs),
    "data.filter_samples": (True, lambda e: e.data.filter_samples),
    "data.pack_samples": (True, lambda e: e.data.packing == "prefix_tree"),
    "data.ignore_empty_think": (True, lambda e: e.data.ignore_empty_think),
    "data.sample_weighted_loss": (True, lambda e: e.data.sample_weighted_loss),
    "logger.output_dir": ("l", lambda e: e.logger.output_dir == "l"),
    "logger.level": ("info", lambda e: e.logger.level == "INFO"),
    "logger.print_output_ranks": ("*", lambda e: e.logger.print_output_ranks == "all"),
    "wandb.enable": (False, lambda e: not e.wandb.enable),
    "wandb.entity": ("us", lambda e: e.wandb.entity == "us"),
    "wandb.project": ("p", lambda e: e.wandb.project == "p"),
    "wandb.name": ("n", lambda e: e.wandb.name == "n"),
    "scheduler.type": ("huggingface", lambda e: e.scheduler.type == "huggingface"),
    "scheduler.name": ("polynomial", lambda e: e.scheduler.name == "polynomial"),
    "scheduler.warmup_ratio": ("10%", lambda e: e.scheduler.warmup_ratio == 0.1),
    "scheduler.scheduler_specific_kwargs": (
        {"num_cycles": 0.25},
        lambda e: e.scheduler.scheduler_specific_kwargs.num_cycles == 0.25,
    ),
    "optimizer.type": ("FusedAdam", lambda e: e.optimizer.type == "adamw"),
    "optimizer.weight_decay": ("1%", lambda e: e.optimizer.weight_decay == 0.01),
    "optimizer.betas": ([0.9, 0.95], lambda e: e.optimizer.betas == (0.9, 0.95)),
    "optimizer.learning_rate": ("1e-4", lambda e: e.optimizer.lr == 1e-4),
    "optimizer.lr": ("1e-4", lambda e: e.optimizer.lr == 1e-4),
    "checkpoint[].type": ("huggingface", lambda e: e.checkpoint[0].type == "huggingface"),
    "checkpoint[].output_dir": ("o", lambda e: e.checkpoint[0].output_dir == "o"),
    "checkpoint[].enabled": (False, lambda e: len(e.checkpoint) == 1 and e.checkpoint[0].output_dir is None),
    "checkpoint[].save_every_n_steps": (5, lambda e: e.checkpoint[0].save_every_n_steps == 5),
    "checkpoint[].save_every_n_epochs": (2, lambda e: e.checkpoint[0].save_every_n_epochs == 2),
    "checkpoint[].save_end_of_training": (True, lambda e: e.checkpoint[0].save_end_of_training),
}
_SOURCE: dict[str, tuple[Any, Any]] = {
    "type": ("huggingface", lambda s: s.type == "huggingface_instruct"),
    "name_or_path": ("d:test[:5]", lambda s: (s.name_or_path, s.split) == ("d", "test[:5]")),
    "split": ("other", lambda s: s.split == "other"),
    "split_mapping": (
        {"train": "train_sft", "eval": "test_sft"},
        lambda s: s.split in ("train_sft", "test_sft"),
    ),
    "sample_ratio": (0.5, lambda s: s.sample_ratio == 0.5),
    "sample_count": (5, lambda s: s.sample_count == 5),
    "sample_seed": (5, lambda s: s.sample_seed == 5),
    "role_mapping": ({"user": "q"}, lambda s: s.role_mapping == {"user": "q"}),
    "kwargs": ({"revision": "main"}, lambda s: s.kwargs == {"revision": "main"}),
}
for _name, (_value, _check) in _SOURCE.items():
    ACCEPTED[f"data.sources[].{_name}"] = (_value, lambda e, check=_check: check(e.data.sources[0]))
    ACCEPTED[f"data.eval_sources[].{_name}"] = (_value, lambda e, check=_check: check(e.data.eval_sources[0]))

NO_EFFECT: dict[str, Any] = {
    "data.dl_num_workers": 1,
    "data.use_data_cache": False,
    "data.cache_processed_data": False,
    "data.cache_fs_type": "shared",
    "data.div_length": 128,
    "data.pad_to": "max_length",
    "logger.file_output_ranks": [0],
    "checkpoint[].auto_resume": False,
    "data.sources[].batch_size": 1024,
    "data.eval_sources[].batch_size": 1024,
}

REFUSED: dict[str, Any] = {
    "code": "train.py",
    "skip_validation": True,
    "local_rank": 0,
    "global_rank": 0,
    "world_size": 1,
    "train_log_iter_interval": 0,
    "train_log_metrics_path": "m.jsonl",
    "expert_parallel_size": 8,
    "arctic_moe": "auto",
    "enable_arctic_moe_custom_optimization": True,
    "enable_routing_replay": True,
    "eval_log_iter_interval": 5,
    "exit_iteration_this_run": 6,
    "overfit_first_batch": True,
    "mem_profiler": "step",
    "mem_profiler_dir": "d",
    "mem_profiler_max_entries": "100k",
    "kill_switch_path": "/tmp/k",
    "model.save_name": "n",
    "tokenizer.type": "mine",
    "tokenizer.tokenize_kwargs": {"add_special_tokens": True},
    "data.fail_on_missing_cache": True,
    "data.always_max_length": True,
    "data.drop_last": True,
    "data.fuse_positions_prob": 0.5,
    "data.repeat_to_pack_max_length": True,
    "scheduler.learning_rate": 1e-4,
    "scheduler.lr": 1e-4,
    **{
        f"data.{part}[].{name}": value
        for part in ("sources", "eval_sources")
        for name, value in {"process": False, "dataset_uri": "snow://dataset/d/versions/v1"}.items()
    },
}
# What is accepted only together with another key.
_SNOWFLAKE = {"type": "snowflake", "name_or_path": None}
TOGETHER = {
    f"data.{part}[].{name}": entry
    for part in ("sources", "eval_sources")
    for name, entry in {
        "content_key": {"content_key": "body", "role_mapping": {"user": "talk.role.user"}},
        "sql": {**_SNOWFLAKE, "sql": "select a, b from t"},
        "table_name": {**_SNOWFLAKE, "type": "snowflake_table", "table_name": "db.logs.t"},
        "column_mapping": {**_SNOWFLAKE, "sql": "select a from t", "column_mapping": {"A": "INPUT"}},
        "limit": {**_SNOWFLAKE, "table_name": "t", "limit": 100},
    }.items()
}


def with_key(path: str, value: Any) -> dict[str, Any]:
    """The smallest file with a key of this path."""
    content: dict[str, Any] = yaml.safe_load(yaml.safe_dump(BASE))
    section: Any = content
    *parents, name = path.split(".")
    for parent in parents:
        if parent.endswith("[]"):
            default = {"type": "huggingface"} if parent == "checkpoint[]" else {"name_or_path": "d"}
            section = section.setdefault(parent.removesuffix("[]"), [default])[0]
        else:
            section = section.setdefault(parent, {})
    if path.startswith("checkpoint") and name == "enabled":
        section["output_dir"] = "o"
    section[name] = value
    return content


def read(folder: Path, content: dict[str, Any] | str) -> ExperimentFile:
    path = folder / "theirs.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return read_experiment_file(path)


def test_every_key_of_the_reference_is_known() -> None:
    assert set(KEYS) == REFERENCE_KEYS | GUIDE_KEYS
    assert {*ACCEPTED, *NO_EFFECT, *REFUSED, *TOGETHER} == set(KEYS)
    by_treatment = {path: key.treatment for path, key in KEYS.items()}
    assert all(by_treatment[path] in ("same", "translated") for path in (*ACCEPTED, *TOGETHER))
    assert all(by_treatment[path] == "no_effect" for path in NO_EFFECT)
    assert all(by_treatment[path] == "refused" for path in REFUSED)


@pytest.mark.parametrize("path", ACCEPTED)
def test_an_accepted_key_sets_its_option(tmp_path: Path, path: str) -> None:
    value, holds = ACCEPTED[path]
    assert holds(read(tmp_path, with_key(path, value)).experiment)


@pytest.mark.parametrize("path", TOGETHER)
def test_keys_that_go_together(tmp_path: Path, path: str) -> None:
    content = with_key(path, None)
    part = path.split(".")[1].removesuffix("[]")
    content["data"][part][0] |= TOGETHER[path]
    source = getattr(read(tmp_path, content).experiment.data, part)[0]
    name = path.rpartition(".")[2]
    assert getattr(source, name) == TOGETHER[path][name]


@pytest.mark.parametrize("path", NO_EFFECT)
def test_a_key_without_effect_is_reported(tmp_path: Path, path: str) -> None:
    notice = read(tmp_path, with_key(path, NO_EFFECT[path])).notice
    assert notice is not None
    assert f"  {path.replace('[]', '.0')}: {KEYS[path].note}" in notice.split("Without effect here:\n")[1].splitlines()


@pytest.mark.parametrize(("size", "reported"), [(1, True), (2, False)])
def test_the_format_of_sums_over_parts_of_a_row_has_no_effect_on_whole_rows(size: int, reported: bool) -> None:
    name = "seq_parallel_communication_data_type"
    done = translate({"sequence_parallel_size": size, "deepspeed": {name: "bf16"}})
    assert done.no_effect == ([f"deepspeed.{name}: sequence_parallel_size is 1"] if reported else [])
    assert done.content["deepspeed"] == ({} if reported else {name: "bf16"})


@pytest.mark.parametrize("path", REFUSED)
def test_a_refused_key_is_reported_with_its_reason(tmp_path: Path, path: str) -> None:
    with pytest.raises(FimError) as error:
        read(tmp_path, with_key(path, REFUSED[path]))
    assert str(error.value).splitlines()[1:] == [f"  {path.replace('[]', '.0')}: {KEYS[path].note}"]


@pytest.mark.parametrize("path", [path for path, key in KEYS.items() if key.passing])
def test_values_that_ask_for_nothing_pass(tmp_path: Path, path: str) -> None:
    plain = read(tmp_path, BASE).experiment
    for value in KEYS[path].passing:
        file = read(tmp_path, with_key(path, value))
        # A section that holds nothing else is as if it were absent.
        assert file.experiment.model_copy(update={"data": plain.data}) == plain
        assert file.experiment.data.sources == plain.data.sources
        assert (file.translation.no_effect, file.translation.changes) == ([], [])


def test_the_documentation_lists_every_key() -> None:
    text = Path("docs/arctic_training.md").read_text(encoding="utf-8")
    assert markdown_table() in text, (
        "put the output of fim_core.config.arctic_training.keys.markdown_table() into the file"
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train_iters": "many"}, "train_iters: 'many' is not a number"),
        ({"train_iters": -3}, "train_iters: "),
        ({"min_iterations": 1.5}, "min_iterations: "),
        ({"train_iters": 5, "max_steps": 5}, "train_iters: max_steps says the same"),
        ({"eval_frequency": -1}, "eval_frequency: "),
        ({"eval_frequency": 5, "eval_interval": 5}, "eval_frequency: eval_interval says the same"),
        ({"tokenizer": {"name_or_path": 3}}, "tokenizer.name_or_path"),
        ({"tokenizer": {"nam": "x"}}, "tokenizer.nam: no such option"),
        ({"checkpoint": [{"enabled": False}, {"save_every_n_steps": "x"}]}, "checkpoint.1.save_every_n_steps: 'x'"),
        ({"checkpoint": {"enabled": "maybe"}}, "checkpoint.0.enabled: maybe is neither"),
        ({"optimizer": {"type": "fused_adam_moe"}}, "optimizer.type: fused_adam_moe: experts are not distributed"),
        ({"optimizer": {"type": "sgd"}}, "optimizer.type: "),
        ({"scheduler": {"name": "greedy"}}, "scheduler.name: greedy depends on a metric"),
        ({"scheduler": {"name": "cosin"}}, "did you mean cosine?"),
        (
            {"scheduler": {"name": "inverse_sqrt", "scheduler_specific_kwargs": {"power": 2}}},
            "its arguments are timescale",
        ),
        ({"scheduler": {"name": "warmup_stable_decay"}}, "needs num_decay_steps"),
        ({"type": "dpo"}, "type: the trainer dpo is not supported; only `sft` is"),
        ({"epochs": None}, "`epochs: null` needs max_steps"),
        ({"deepspeed": {"bfloat16": {"enabled": True}}}, "`bfloat16` is set by `model.dtype`"),
    ],
)
def test_a_bad_value_names_the_key_that_the_file_has(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(FimError) as error:
        read(tmp_path, BASE | change)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"train_eval_split": [0.9, 0.2]}, "data.train_eval_split: [0.9, 0.2] is not two shares"),
        ({"train_eval_split": [0.9, 0.1], "eval_sources": ["e"]}, "data.train_eval_split: held-out rows come from"),
        ({"train_eval_split": [0.9, 0.1], "eval_fraction": 0.1}, "data.eval_fraction says the same"),
        ({"seed": 7}, "data.seed: 7 differs from `seed` (42)"),
        ({"filter_samples": False}, "data.filter_samples: false keeps rows longer"),
        (
            {"sources": [{"name_or_path": "d", "sample_ratio": 0.5, "sample_count": 5}]},
            "either sample_ratio or sample_count",
        ),
        ({"sources": [{"name_or_path": "d:a", "split": "b"}]}, "data.sources.0.name_or_path: names the split a"),
        ({"sources": ["d:train[5]"]}, "slices are written like"),
        ({"sources": [{"name_or_path": "d", "kwargs": {"token": "x"}}]}, "token is not allowed"),
    ],
)
def test_a_bad_value_of_data_is_named(tmp_path: Path, data: dict[str, Any], named: str) -> None:
    with pytest.raises(FimError) as error:
        read(tmp_path, {**BASE, "data": {**BASE["data"], **data}})
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("written", "ours"),
    [("bf16", "bf16"), ("bfloat16", "bf16"), ("bfloat", "bf16"), ("torch.bfloat16", "bf16"), ("fp16", "fp16"),
     ("float16", "fp16"), ("half", "fp16"), ("fp32", "fp32"), ("float32", "fp32"), ("float", "fp32"), ("auto", "auto")],
)  # fmt: skip
def test_dtypes(tmp_path: Path, written: str, ours: str) -> None:
    assert read(tmp_path, with_key("model.dtype", written)).experiment.model.dtype == ours


@pytest.mark.parametrize("written", ["cpu_adam", "CPUAdam", "DeepSpeedCPUAdam"])
def test_optimizers_in_host_memory(tmp_path: Path, written: str) -> None:
    offloaded = {"deepspeed": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}}
    assert read(tmp_path, with_key("optimizer.type", written) | offloaded).experiment.optimizer.type == "cpu_adam"


@pytest.mark.parametrize(
    ("entry", "place", "split"),
    [
        ("a/b:test", "a/b", "test"),
        ("a/b:train[10:20]", "a/b", "train[10:20]"),
        ("HuggingFaceH4/ultrachat_200k", "HuggingFaceH4/ultrachat_200k", "train_sft"),
        ("HuggingFaceH4/ultrachat_200k:train[:100]", "HuggingFaceH4/ultrachat_200k", "train_sft[:100]"),
        ("HuggingFaceH4/ultrachat_200k:test_sft", "HuggingFaceH4/ultrachat_200k", "test_sft"),
        ("plain.csv", "plain.csv", "train"),
    ],
)
def test_a_source_with_a_split_in_its_name(tmp_path: Path, entry: str, place: str, split: str) -> None:
    source = read(tmp_path, {**BASE, "data": {"sources": [entry]}}).experiment.data.sources[0]
    assert (source.name_or_path, source.split) == (place, split)


def test_a_file_whose_name_has_a_colon_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "night:2.csv"
    path.write_text("INPUT,OUTPUT\n")
    assert read(tmp_path, {**BASE, "data": {"sources": [str(path)]}}).experiment.data.sources[0].name_or_path == str(
        path
    )


def test_held_out_sources_have_the_split_eval(tmp_path: Path) -> None:
    data = read(tmp_path, {**BASE, "data": {"sources": ["d"], "eval_sources": ["d", "e:test"]}}).experiment.data
    assert (data.sources[0].split, [source.split for source in data.eval_sources]) == ("train", ["eval", "test"])


def test_the_length_of_a_run(tmp_path: Path) -> None:
    both = read(tmp_path, BASE | {"epochs": 3, "min_iterations": 100, "exit_iteration": 30})
    assert (both.experiment.epochs, both.experiment.min_steps, both.experiment.exit_iteration) == (3, 300, 30)
    fixed = read(tmp_path, BASE | {"epochs": 3, "train_iters": 200, "min_iterations": 100})
    assert (fixed.experiment.epochs, fixed.experiment.max_steps, fixed.experiment.min_steps) == (None, 200, None)
    assert "min_iterations: 100 -> left out, as train_iters decides" in fixed.translation.changes
    off = dict.fromkeys(("train_iters", "min_iterations", "exit_iteration", "eval_interval", "eval_frequency"), 0)
    assert read(tmp_path, BASE | off).experiment == read(tmp_path, BASE).experiment


GUIDE = """
type: sft
micro_batch_size: 1
gradient_accumulation_steps: 1
epochs: 1
model: {type: liger, name_or_path: base, attn_implementation: flash_attention_2, dtype: bf16}
data:
  sources: [{type: huggingface_prompt_response, name_or_path: out, split: train}]
  max_length: 262144
  pack_samples: true
  mask_inputs: true
  filter_samples: true
  sample_weighted_loss: true
  num_proc: 16
  cache_dir: /tmp/cache
optimizer: {type: fused_adam, learning_rate: 1e-5, weight_decay: 0.1, betas: [0.9, 0.98]}
scheduler: {name: cosine_with_min_lr, warmup_ratio: 0.05, scheduler_specific_kwargs: {min_lr_rate: 0.1}}
deepspeed: {zero_optimization: {stage: 2, allgather_bucket_size: 5e8, reduce_bucket_size: 5e8}}
activation_checkpoint_cpu_offload: true
logger: {level: WARNING, output_dir: logs, print_output_ranks: [0]}
wandb: {enable: false, project: x, entity: y}
checkpoint:
  - {type: huggingface, save_every_n_steps: 500, save_end_of_training: true, output_dir: ckpt}
  - {type: deepspeed, auto_resume: true, save_every_n_epochs: 1, output_dir: ds}
"""
LONG_ROWS = """
type: sft
micro_batch_size: 1
exit_iteration: 30
min_iterations: 30
activation_checkpoint_cpu_offload: true
sequence_parallel_size: 1
deepspeed: {zero_optimization: {stage: 3, offload_optimizer: {device: cpu}}, seq_parallel_communication_data_type: bf16}
optimizer: {type: cpu_adam, learning_rate: 0.00001}
model: {type: "liger", name_or_path: base, attn_implementation: flash_attention_3}
data:
  sources: [{type: huggingface_instruct, name_or_path: chats, role_mapping: {user: messages.role.user}}]
  dl_num_workers: 1
  max_length: 1_200_000
logger: {level: WARNING, output_dir: "logs", print_output_ranks: [0, 1]}
checkpoint: [{type: huggingface, save_end_of_training: true, output_dir: ./fine-tuned-model}]
"""
QUICK_START = """
type: sft
micro_batch_size: 2
model: {name_or_path: base}
data: {sources: [chats]}
checkpoint: [{type: huggingface, save_end_of_training: true, output_dir: ./fine-tuned-model}]
"""


def test_the_file_of_the_guide_loads_unchanged(tmp_path: Path) -> None:
    file = read(tmp_path, GUIDE)
    experiment = file.experiment
    assert experiment.deepspeed["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    assert experiment.data.max_length == 262_144
    assert [entry.save_every_n_epochs for entry in experiment.checkpoint] == [None, 1]
    assert {row.option for row in differences(file.translation, experiment)} == {
        "data.eval_fraction",
        "checkpoint.1.save_end_of_training",
    }
    assert file.translation.no_effect == [
        "checkpoint.1.output_dir: states of `type: deepspeed` stay in the run's own folder, where a retry finds them"
    ]


@pytest.mark.parametrize("text", [GUIDE, LONG_ROWS, QUICK_START])
def test_a_file_of_the_reference_is_recognised_and_survives_a_round_trip(tmp_path: Path, text: str) -> None:
    file = read(tmp_path, text)
    assert file.notice is not None
    written = file.experiment.model_dump(mode="json")
    assert Experiment.model_validate(written).model_dump(mode="json") == written


def test_every_differing_default_of_the_quick_start_is_reported(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text('{"max_position_embeddings": 131072}')
    file = read(tmp_path, QUICK_START.replace("base", str(tmp_path / "base")))
    there = {row.option: row.there for row in differences(file.translation, file.experiment)}
    shown = {
        "optimizer.lr": "0.0005",
        "scheduler.name": "linear",
        "scheduler.warmup_ratio": "0.1",
        "activation_checkpointing": "on",
        "data.pack_samples": "none",
        "data.eval_fraction": "0",
        "data.num_proc": "16",
        "data.max_length": "131072",
        "deepspeed.zero_optimization.stage": "2",
        "model.dtype": "bf16",
        "model.attn_implementation": "sdpa",
        "logger.print_output_ranks": "[0]",
    }
    assert there.items() <= (shown | {"data.sample_weighted_loss": "off"}).items()
    here = {row.option: row.here for row in differences(file.translation, file.experiment)}
    assert here["data.max_length"] == str(file.experiment.data.max_length)
    assert here["optimizer.lr"] == f"{file.experiment.optimizer.lr:g}"
    assert here["activation_checkpointing"] == "off"


def test_options_that_the_file_sets_are_not_reported(tmp_path: Path) -> None:
    file = read(
        tmp_path, QUICK_START + "optimizer: {lr: 1e-3}\nscheduler: {warmup_ratio: 0}\nactivation_checkpointing: false"
    )
    options = {row.option for row in differences(file.translation, file.experiment)}
    assert not options & {"optimizer.lr", "scheduler.warmup_ratio", "activation_checkpointing", "batch_rows"}


@pytest.mark.parametrize("given", [{}, {"micro_batch_size": 1}, {"gradient_accumulation_steps": 4}])
def test_rows_per_step_are_reported_if_the_file_does_not_set_them(tmp_path: Path, given: dict[str, int]) -> None:
    file = read(tmp_path, BASE | given)
    rows = [
        (row.there, row.here) for row in differences(file.translation, file.experiment) if row.option == "batch_rows"
    ]
    assert rows == ([] if given else [("1 a rank", "16")])


def test_differences_are_aligned_as_a_table(tmp_path: Path) -> None:
    notice = read(tmp_path, LONG_ROWS).notice or ""
    assert notice.splitlines()[0] == "theirs: read as a file of ArcticTraining."
    header = next(line for line in notice.splitlines() if "ArcticTraining  " in line)
    row = next(line for line in notice.splitlines() if "scheduler.name" in line)
    assert re.split(r"\s{2,}", header.strip()) == ["option", "ArcticTraining", "here"]
    assert header.index("ArcticTraining") == row.index("linear")
    assert "min_iterations: 30 -> min_steps: 30" in notice


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.name)
def test_our_own_files_are_not_mistaken_for_the_references(path: Path) -> None:
    assert read_experiment_file(path).notice is None


def test_our_own_files_are_not_translated() -> None:
    for path in Path("configs").glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        done = translate(content)
        assert load_experiment(path).name == path.stem
        assert (done.changes, done.no_effect, done.refused) == ([], [], [])


@pytest.mark.parametrize("content", [{"data": 3}, {"data": {"sources": 5}}, {"checkpoint": "x"}, {"model": []}, {"logger": 1},
                                     {"data": {"sources": [3]}}, {"optimizer": {"type": 3}}, {"tokenizer": 4}])  # fmt: skip
def test_sections_of_another_shape_are_refused_without_a_traceback(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(FimError, match="cannot be used"):
        read(tmp_path, BASE | content)
