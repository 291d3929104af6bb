"""Keys of ArcticTraining's SFT files and their treatment."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Key:
    """How one key is treated.

    treatment:
        same: an option of ours with this name and meaning.
        translated: an option of ours with another name or other spellings of its values; `note` says which.
        no_effect: nothing here depends on it, and results are the same for any value; reported at loading.
        refused: not supported; `note` gives the reason and what to do.
    passing: values of a refused key, or of one without effect, that ask for what is done here anyway.
    """

    treatment: Literal["same", "translated", "no_effect", "refused"]
    note: str = ""
    passing: tuple[Any, ...] = ()


def _same(note: str = "") -> Key:
    return Key("same", note)


def _translated(note: str) -> Key:
    return Key("translated", note)


def _no_effect(note: str, *passing: Any) -> Key:
    return Key("no_effect", note, passing)


def _refused(note: str, *passing: Any) -> Key:
    return Key("refused", note, passing)


_SOURCE = {
    "type": _translated(
        "`huggingface` without `columns` means rows with `messages`, our `huggingface_instruct`; `snowflake_table` is "
        "`snowflake`"
    ),
    "name_or_path": _translated("`name:split[10:20]` becomes name and `split`"),
    "split": _same("`train`; in eval_sources `eval`"),
    "split_mapping": _translated("applied to `split`"),
    "sample_ratio": _same(),
    "sample_count": _same(),
    "sample_seed": _same(),
    "role_mapping": _same(),
    "content_key": _same(),
    "kwargs": _same("of data sets from a hub; only arguments that choose what is read"),
    "sql": _same("of `type: snowflake`"),
    "table_name": _same("of `type: snowflake`"),
    "column_mapping": _same("names of columns match in any case"),
    "limit": _same("of `type: snowflake`"),
    "batch_size": _no_effect("rows come in the batches that Snowflake sends"),
    "dataset_uri": _refused("versioned Snowflake datasets are not read; use `sql` or `table_name`"),
    "process": _refused("rows are always tokenized here; leave it out", True),
}

NO_EXPERT_PARALLELISM = (
    "experts are not distributed over ranks here; leave it out to train the transformers implementation"
)
_LAUNCHER_SETS = "the launcher sets it; leave it out"
_REUSED = "results for the same rows and options are always reused"
_NO_PROFILER = "there is no memory profiler here; each step's peak memory is in metrics.jsonl"

KEYS: dict[str, Key] = {
    "type": _same("`sft`; other trainers are refused"),
    "code": _refused("only code of this package is run; leave it out"),
    "skip_validation": _refused("options are always checked; leave it out", False),
    "local_rank": _refused(_LAUNCHER_SETS),
    "global_rank": _refused(_LAUNCHER_SETS),
    "world_size": _refused(_LAUNCHER_SETS),
    "model.type": _same(),
    "model.name_or_path": _same(),
    "model.dtype": _translated("`bfloat16`, `torch.float16`, `half`, … become `bf16`, `fp16`, `fp32`"),
    "model.save_name": _refused("the model is saved under the experiment's name; use the key `name`", None),
    "model.attn_implementation": _same("an unavailable kernel is replaced, with a message"),
    "model.disable_activation_checkpoint": _translated("`activation_checkpointing`, negated"),
    "model.peft_config": _translated("LoRA; `peft_type` in any case"),
    "model.hf_config_kwargs": _same("`num_hidden_layers` may not change the model"),
    "tokenizer.type": _refused("tokenizers are those of transformers (`huggingface`)", "", "huggingface"),
    "tokenizer.name_or_path": _translated("`model.tokenizer`"),
    "tokenizer.tokenize_kwargs": _refused("tokenization is fixed, so that training and serving agree", {}),
    "data.type": _same(),
    **{f"data.{part}[].{name}": key for part in ("sources", "eval_sources") for name, key in _SOURCE.items()},
    "data.train_eval_split": _translated("its second number is `data.eval_fraction`; groups of rows stay together"),
    "data.max_length": _same(),
    "data.num_proc": _same(),
    "data.dl_num_workers": _no_effect("batches are made in the training process, from tokens on disk"),
    "data.seed": _translated("must equal `seed`, which decides everything random"),
    "data.use_data_cache": _no_effect(_REUSED, True, None),
    "data.cache_processed_data": _no_effect(_REUSED, True, None),
    "data.cache_dir": _same("of data sets from a hub; everything else is in `storage`"),
    "data.cache_fs_type": _no_effect("one process prepares the data, whatever the file system", "auto"),
    "data.fail_on_missing_cache": _refused("missing data is always prepared; leave it out", False),
    "data.div_length": _no_effect("rows are not padded"),
    "data.pad_to": _no_effect("rows are not padded"),
    "data.mask_inputs": _same(),
    "data.always_max_length": _refused("no row is cut to fill a pack; leave it out", False),
    "data.filter_samples": _translated("true; `false` keeps longer rows there, and is refused"),
    "data.pack_samples": _same("packs share common prefixes, with equal loss"),
    "data.drop_last": _refused("no pack is dropped; leave it out", False),
    "data.fuse_positions_prob": _refused("every row has its own positions; leave it out", 0),
    "data.repeat_to_pack_max_length": _refused("rows are not repeated within a pack; use `epochs`", False),
    "data.ignore_empty_think": _same(),
    "data.sample_weighted_loss": _same(),
    "logger.output_dir": _same(),
    "logger.level": _same(),
    "logger.print_output_ranks": _translated('`"*"` is `all`'),
    "logger.file_output_ranks": _no_effect("every rank keeps its log file, which says why a rank failed", "*"),
    "wandb.enable": _same(),
    "wandb.entity": _same(),
    "wandb.project": _same(),
    "wandb.name": _same(),
    "scheduler.type": _same(),
    "scheduler.name": _same("the schedules of transformers that follow from the step"),
    "scheduler.warmup_ratio": _same(),
    "scheduler.scheduler_specific_kwargs": _same("only what the schedule takes"),
    "scheduler.learning_rate": _refused("use `optimizer.learning_rate`", None),
    "scheduler.lr": _refused("use `optimizer.learning_rate`", None),
    "optimizer.type": _translated("`fused_adam`, `FusedAdam`, … become `adamw`; `CPUAdam`, … become `cpu_adam`"),
    "optimizer.learning_rate": _same(),
    "optimizer.lr": _same(),
    "optimizer.weight_decay": _same(),
    "optimizer.betas": _same(),
    "deepspeed": _same("options that DeepSpeed and this trainer support; numbers in any notation"),
    "epochs": _same(),
    "micro_batch_size": _same(),
    "gradient_accumulation_steps": _same(),
    "loss_log_interval": _same(),
    "train_log_iter_interval": _refused("every step is in metrics.jsonl; leave it out", 1),
    "train_log_metrics_path": _refused("metrics.jsonl is kept with the checkpoint; leave it out"),
    "sequence_parallel_size": _same("packed rows stay separate, and shared prefixes are possible"),
    "expert_parallel_size": _refused(NO_EXPERT_PARALLELISM, 1),
    "arctic_moe": _refused(NO_EXPERT_PARALLELISM, False),
    "enable_arctic_moe_custom_optimization": _refused(NO_EXPERT_PARALLELISM, False),
    "enable_routing_replay": _refused(NO_EXPERT_PARALLELISM, False),
    "activation_checkpoint_cpu_offload": _same(),
    "tiled_mlp_compute": _same("norms are computed in tiles too; not for every type of model"),
    "seed": _same(),
    "checkpoint[].type": _same(),
    "checkpoint[].output_dir": _translated(
        "weights of `type: huggingface`; states of `type: deepspeed` stay in the run's own folder, where a retry finds them"
    ),
    "checkpoint[].enabled": _translated("`false` leaves the entry out"),
    "checkpoint[].auto_resume": _no_effect(
        "a stopped run always resumes, and ends as one that was never stopped", True
    ),
    "checkpoint[].save_every_n_steps": _translated("0 is off"),
    "checkpoint[].save_every_n_epochs": _translated("0 is off"),
    "checkpoint[].save_end_of_training": _same(),
    "train_iters": _translated("`max_steps`, with as many epochs as they need; 0 is off"),
    "eval_interval": _translated("0 is off"),
    "eval_frequency": _translated("`eval_interval`"),
    "eval_log_iter_interval": _refused("every evaluation is logged; leave it out", 1),
    "exit_iteration": _translated("0 is off"),
    "exit_iteration_this_run": _refused("stop a run with Ctrl-C; it resumes when it is started again", 0),
    "min_iterations": _translated("`min_steps`, times `epochs`; 0 is off"),
    "overfit_first_batch": _refused("use a source with `sample_count`", False),
    "mem_profiler": _refused(_NO_PROFILER, None),
    "mem_profiler_dir": _refused(_NO_PROFILER),
    "mem_profiler_max_entries": _refused(_NO_PROFILER),
    "kill_switch_path": _refused("stop a run with Ctrl-C, or cancel it in Dagster; it resumes"),
}
"""Every key of an SFT file, by its path; `[]` is any entry of a list."""


def markdown_table() -> str:
    """`KEYS` as the table of the documentation."""
    words = {"same": "same", "translated": "translated", "no_effect": "no effect", "refused": "refused"}
    lines = ["| key | treatment | note |", "| --- | --- | --- |"]
    for path, key in KEYS.items():
        passing = f" (accepted: {', '.join(f'`{json.dumps(value)}`' for value in key.passing)})" if key.passing else ""
        lines.append(f"| `{path}` | {words[key.treatment]} | {key.note}{passing} |")
    return "\n".join(lines)
