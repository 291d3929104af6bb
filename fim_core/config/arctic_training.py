"""Experiment files of ArcticTraining: how each of their keys is treated, and where its defaults differ from ours.

ArcticTraining (github.com/snowflakedb/ArcticTraining) is the trainer whose file format this project follows. `KEYS` lists
every key of its SFT files. `translate` turns such a file into one of ours; a file of ours passes through unchanged.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fim_core.config.deepspeed import offloads_optimizer
from fim_core.config.numbers import parse_number

if TYPE_CHECKING:
    from fim_core.config.experiment import Experiment

Location = tuple[int | str, ...]


@dataclass(frozen=True)
class Key:
    """How one key is treated.

    treatment:
        same: an option of ours with this name and meaning.
        translated: an option of ours by another name, or with other spellings of its values; `note` says which.
        no_effect: results are equal whatever it says, and there is nothing here for it to act on; named at loading.
        refused: it cannot be done here; `note` is the reason and the cure.
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
    "type": _translated("`huggingface` without `columns` means rows with `messages`, our `huggingface_instruct`"),
    "name_or_path": _translated("`name:split[10:20]` becomes name and `split`"),
    "split": _same("`train`; in eval_sources `eval`"),
    "split_mapping": _translated("applied to `split`"),
    "sample_ratio": _same(),
    "sample_count": _same(),
    "sample_seed": _same(),
    "role_mapping": _same(),
    "content_key": _same(),
    "kwargs": _same("of data sets from a hub; only arguments that choose what is read"),
    "process": _refused("rows are always tokenized here; leave it out", True),
}

_MOE = "experts are never spread over ranks here; leave it out to train the model as transformers has it"
_LAUNCHER_SETS = "the launcher sets it; leave it out"
_REUSED = "what was made of the same rows and options is always used again"
_NO_PROFILER = "there is no memory profiler here; each step's peak memory is in metrics.jsonl"

KEYS: dict[str, Key] = {
    "type": _same("`sft`; other trainers are refused"),
    "code": _refused("no code but this package's own is run; leave it out"),
    "skip_validation": _refused("options are always checked; leave it out", False),
    "local_rank": _refused(_LAUNCHER_SETS),
    "global_rank": _refused(_LAUNCHER_SETS),
    "world_size": _refused(_LAUNCHER_SETS),
    "model.type": _same(),
    "model.name_or_path": _same(),
    "model.dtype": _translated("`bfloat16`, `torch.float16`, `half`, … become `bf16`, `fp16`, `fp32`"),
    "model.save_name": _refused("the model is saved under the experiment's name; use the key `name`", None),
    "model.attn_implementation": _same("what the machine lacks is replaced, with a message"),
    "model.disable_activation_checkpoint": _translated("`activation_checkpointing`, negated"),
    "model.peft_config": _translated("LoRA; `peft_type` in any case"),
    "model.hf_config_kwargs": _same("`num_hidden_layers` may not change the model"),
    "tokenizer.type": _refused("tokenizers are those of transformers (`huggingface`)", "", "huggingface"),
    "tokenizer.name_or_path": _translated("`model.tokenizer`"),
    "tokenizer.tokenize_kwargs": _refused("how rows are tokenized is fixed, so that training and serving agree", {}),
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
    "data.fail_on_missing_cache": _refused("what is missing is made; leave it out", False),
    "data.div_length": _no_effect("rows are not padded"),
    "data.pad_to": _no_effect("rows are not padded"),
    "data.mask_inputs": _same(),
    "data.always_max_length": _refused("no row is cut to fill a pack; leave it out", False),
    "data.filter_samples": _translated("true; `false` keeps longer rows there, and is refused"),
    "data.pack_samples": _same("packs share common prefixes, with equal loss"),
    "data.drop_last": _refused("no pack is dropped; leave it out", False),
    "data.fuse_positions_prob": _refused("every row has positions of its own; leave it out", 0),
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
    "deepspeed": _same("what DeepSpeed and this trainer can heed; numbers in any spelling"),
    "epochs": _same(),
    "micro_batch_size": _same(),
    "gradient_accumulation_steps": _same(),
    "loss_log_interval": _same(),
    "train_log_iter_interval": _refused("every step is in metrics.jsonl; leave it out", 1),
    "train_log_metrics_path": _refused("metrics.jsonl is kept with the checkpoint; leave it out"),
    "sequence_parallel_size": _refused("a row is never split over ranks; use 1 and activation checkpointing", 1),
    "expert_parallel_size": _refused(_MOE, 1),
    "arctic_moe": _refused(_MOE, False),
    "enable_arctic_moe_custom_optimization": _refused(_MOE, False),
    "enable_routing_replay": _refused(_MOE, False),
    "activation_checkpoint_cpu_offload": _same(),
    "tiled_mlp_compute": _refused("MLPs are not computed in tiles; leave it out, results are equal", False),
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
    "exit_iteration_this_run": _refused("a run goes to its end; stop it with Ctrl-C, and it resumes", 0),
    "min_iterations": _translated("`min_steps`, times `epochs`; 0 is off"),
    "overfit_first_batch": _refused("use a source with `sample_count`", False),
    "mem_profiler": _refused(_NO_PROFILER, None),
    "mem_profiler_dir": _refused(_NO_PROFILER),
    "mem_profiler_max_entries": _refused(_NO_PROFILER),
    "kill_switch_path": _refused("stop a run with Ctrl-C, or cancel it in Dagster; it resumes"),
}
"""Every key of an SFT file, by its path; `[]` is any entry of a list."""

_DTYPES = {
    "bf16": ("bf16", "bfloat16", "bfloat"),
    "fp16": ("fp16", "float16", "half"),
    "fp32": ("fp32", "float32", "float"),
}
_OPTIMIZERS = {
    "adamw": ("adamw", "fusedadam", "fusedadamw"),
    "cpu_adam": ("cpuadam", "deepspeedcpuadam"),
}
_SPLITS_OF_HUB_SETS = {
    "HuggingFaceH4/ultrachat_200k": {"train": "train_sft", "eval": "test_sft"},
    "nvidia/AceMath-Instruct-Training-Data": {"train": "general_sft_stage2"},
}
_ROLES_OF_HUB_SETS = {
    "HuggingFaceH4/ultrachat_200k": {"user": "messages.role.user", "assistant": "messages.role.assistant"},
    "nvidia/AceMath-Instruct-Training-Data": {"user": "messages.role.user", "assistant": "answer"},
    "Open-Orca/OpenOrca": {"system": "system_prompt", "user": "question", "assistant": "response"},
    "Open-Orca/SlimOrca": {
        "system": "conversations.from.system",
        "user": "conversations.from.human",
        "assistant": "conversations.from.gpt",
    },
    "THUDM/LongAlign-10k": {"user": "messages.role.user", "assistant": "messages.role.assistant"},
    "Yukang/LongAlpaca-12k": {"user": "instruction", "assistant": "output"},
    "meta-math/MetaMathQA": {"user": "query", "assistant": "response"},
    "ise-uiuc/Magicoder-OSS-Instruct-75K": {"user": "problem", "assistant": "solution"},
    "lmsys/lmsys-chat-1m": {"user": "conversation.role.user", "assistant": "conversation.role.assistant"},
}


@dataclass
class Translation:
    """An experiment file in our terms.

    content: what is validated.
    given: paths of all keys of the file.
    written: where a value of `content` comes from, by location: the key that the file has for it.
    changes, no_effect: sentences on what was translated, and on keys that have nothing to act on.
    refused: sentences on what cannot be used.
    is_reference: whether the file is, or may be, one of ArcticTraining.
    """

    content: dict[str, Any]
    given: frozenset[str] = frozenset()
    written: dict[Location, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    no_effect: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    is_reference: bool = False

    def name_of(self, location: Location) -> str:
        """The key at a location of `content`, as the file has it."""
        for length in range(len(location), 0, -1):
            if (name := self.written.get(location[:length])) is not None:
                return ".".join([name, *map(str, location[length:])])
        return ".".join(map(str, location))

    def refuse(self, location: Location, reason: str) -> None:
        """Note that the value at a location cannot be used."""
        self.refused.append(f"{self.name_of(location)}: {reason}")

    def changed(self, location: Location, value: Any, becomes: str) -> None:
        """Note what became of a key."""
        self.changes.append(f"{self.name_of(location)}: {_short(value)} -> {becomes}")


def translate(raw: Mapping[str, Any]) -> Translation:
    """Read a file's mapping: names, spellings and switches of ArcticTraining become ours.

    Values of a shape that no file of either kind has are left for validation to refuse.
    """
    paths = frozenset(_paths(raw))
    if raw.get("type", "sft") != "sft":
        done = Translation(dict(raw), paths)
        done.refuse(("type",), f"the trainer {_short(raw['type'])} is not done here; only `sft` is")
        return done
    done = Translation(copy.deepcopy(dict(raw)), paths)
    _list_entries(done.content)
    spelled = _settle_known_keys(done)
    for step in (_model, _tokenizer, _optimizer, _data, _checkpoints, _run_length, _logging):
        step(done)
    own = paths - KEYS.keys()
    done.is_reference = not own or spelled or bool(done.changes or done.no_effect or done.refused)
    if done.is_reference and not own:
        _refuse_unfiltered_rows(done)
    return done


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all keys, down to those whose values are mappings of free form."""
    if isinstance(value, Mapping) and (not path or any(known.startswith(f"{path}.") for known in KEYS)):
        for name, item in value.items():
            yield from _paths(item, f"{path}.{name}".removeprefix("."))
    elif isinstance(value, list) and any(known.startswith(f"{path}[]") for known in KEYS):
        for item in value:
            yield from _paths(item, f"{path}[]")
    elif path.endswith("[]") or any(known.startswith((f"{path}.", f"{path}[]")) for known in KEYS):
        return  # a section in a short form: a path in place of a source
    else:
        yield path


def _list_entries(content: dict[str, Any]) -> None:
    """Give every source and checkpoint the form of a list of sections."""
    if isinstance(content.get("checkpoint"), dict):
        content["checkpoint"] = [content["checkpoint"]]
    data = _section(content, "data")
    for part in ("sources", "eval_sources"):
        entries = data.get(part)
        if isinstance(entries, str | dict):
            entries = [entries]
        if isinstance(entries, list):
            data[part] = [{"name_or_path": entry} if isinstance(entry, str) else entry for entry in entries]


def _sections(content: Any, path: str) -> Iterator[tuple[dict[str, Any], Location]]:
    """The sections at a path (`data.sources[]`), each with its location; those of another shape are passed over."""
    found: list[tuple[Any, Location]] = [(content, ())]
    for part in path.split(".") if path else ():
        name, is_list = part.removesuffix("[]"), part.endswith("[]")
        inner = [(value[name], (*at, name)) for value, at in found if isinstance(value, dict) and name in value]
        if is_list:
            inner = [
                (entry, (*at, number))
                for value, at in inner
                if isinstance(value, list)
                for number, entry in enumerate(value)
            ]
        found = inner
    yield from ((value, at) for value, at in found if isinstance(value, dict))


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    """A top-level section, or an empty one where the file has none or something else."""
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def _settle_known_keys(done: Translation) -> bool:
    """Take out what is refused and what has no effect; whether there was any such key, even one that asks for nothing."""
    found = False
    for path, key in KEYS.items():
        if key.treatment not in ("refused", "no_effect"):
            continue
        parent, _, name = path.rpartition(".")
        for section, at in _sections(done.content, parent):
            if name not in section:
                continue
            found = True
            value = section.pop(name)
            if _is_one_of(value, key.passing):
                continue
            if key.treatment == "no_effect":
                done.no_effect.append(f"{done.name_of((*at, name))}: {key.note}")
            else:
                done.refuse((*at, name), key.note)
    return found


def _is_one_of(value: Any, others: tuple[Any, ...]) -> bool:
    """Whether a value equals one of the others; text may spell a number, and `true` is not 1."""
    for other in others:
        is_number = isinstance(other, int | float) and not isinstance(other, bool)
        if (_number(value) if is_number else value) == other and (is_number or type(value) is type(other)):
            return True
    return False


def _model(done: Translation) -> None:
    model = _section(done.content, "model")
    if isinstance(dtype := model.get("dtype"), str):
        spelling = dtype.lower().removeprefix("torch.")
        model["dtype"] = next((name for name, names in _DTYPES.items() if spelling in names), dtype)
    if "disable_activation_checkpoint" in model:
        disabled = model.pop("disable_activation_checkpoint")
        _put(done, ("model", "disable_activation_checkpoint"), disabled, "activation_checkpointing", _negated(disabled))
    if isinstance(adapters := model.get("peft_config"), dict):
        if isinstance(kind := adapters.get("peft_type"), str) and kind.upper() == "LORA":
            adapters["peft_type"] = "LORA"
        for name, only in (("task_type", "CAUSAL_LM"), ("bias", "none"), ("inference_mode", False)):
            if adapters.get(name) == only:
                del adapters[name]


def _negated(value: Any) -> Any:
    return not value if isinstance(value, bool) else value


def _tokenizer(done: Translation) -> None:
    if not isinstance(section := done.content.get("tokenizer"), dict):
        return
    del done.content["tokenizer"]
    if place := section.pop("name_or_path", None):
        model = done.content.setdefault("model", {})
        if isinstance(model, dict):
            if "tokenizer" in model:
                done.refuse(("tokenizer", "name_or_path"), "model.tokenizer says the same; leave one of them out")
            model["tokenizer"] = place
            done.written["model", "tokenizer"] = "tokenizer.name_or_path"
            done.changed(("tokenizer", "name_or_path"), place, "model.tokenizer")
    for name in section:
        done.refuse(("tokenizer", name), "no such option")


def _optimizer(done: Translation) -> None:
    optimizer = _section(done.content, "optimizer")
    if not isinstance(kind := optimizer.get("type"), str):
        return
    spelling = re.sub(r"[^a-z]", "", kind.lower())
    if spelling.endswith("adammoe"):
        done.refuse(("optimizer", "type"), f"{kind}: {_MOE}")
        del optimizer["type"]
    elif not kind:
        del optimizer["type"]
    else:
        optimizer["type"] = next((name for name, names in _OPTIMIZERS.items() if spelling in names), kind)


def _data(done: Translation) -> None:
    data = _section(done.content, "data")
    for part, split in (("sources", "train"), ("eval_sources", "eval")):
        for source, at in _sections(done.content, f"data.{part}[]"):
            _source(done, source, at, split)
    seed = done.content.get("seed", 42)
    if "seed" in data and _number(given := data.pop("seed")) != _number(seed):
        done.refuse(("data", "seed"), f"{_short(given)} differs from `seed` ({_short(seed)}), which decides everything")
    if "train_eval_split" in data:
        _train_eval_split(done, data, data.pop("train_eval_split"))


def _source(done: Translation, source: dict[str, Any], at: Location, default_split: str) -> None:
    if source.get("type") in ("", None):
        source.pop("type", None)
    if source.get("type") == "huggingface" and source.get("columns") is None:
        source["type"] = "huggingface_instruct"
    place = source.get("name_or_path")
    if isinstance(place, str) and ":" in place and "://" not in place and not Path(place).expanduser().exists():
        source["name_or_path"], split = place.split(":", 1)
        if source.get("split", split) != split:
            done.refuse((*at, "name_or_path"), f"names the split {split}, and `split` another; leave one of them out")
        source["split"] = split
        done.written[(*at, "split")] = done.name_of((*at, "name_or_path"))
        place = source["name_or_path"]
    mapping = source.pop("split_mapping", None) or _SPLITS_OF_HUB_SETS.get(str(place), {})
    if not isinstance(mapping, dict):
        done.refuse((*at, "split_mapping"), "is a section, for example {train: train_sft}")
        mapping = {}
    if (mapping or default_split != "train") and not source.get("split"):
        source["split"] = default_split
    if isinstance(whole := source.get("split"), str):
        name, bracket, rest = whole.partition("[")
        if name not in mapping.values():
            source["split"] = str(mapping.get(name, name)) + bracket + rest
    is_chat = source.get("type") in (None, "auto", "huggingface_instruct")
    if is_chat and "role_mapping" not in source and "columns" not in source and str(place) in _ROLES_OF_HUB_SETS:
        source["role_mapping"] = dict(_ROLES_OF_HUB_SETS[str(place)])


def _train_eval_split(done: Translation, data: dict[str, Any], shares: Any) -> None:
    at = ("data", "train_eval_split")
    found = [_number(share) for share in shares] if isinstance(shares, list) else []
    numbers = [number for number in found if number is not None]
    if len(numbers) != 2 or len(found) != 2 or min(numbers) < 0 or abs(sum(numbers) - 1) > 1e-9:
        done.refuse(at, f"{_short(shares)} is not two shares, of training and of held-out rows, that add up to 1")
    elif numbers[1] and data.get("eval_sources"):
        done.refuse(at, "held-out rows come from eval_sources; leave one of them out")
    elif not data.get("eval_sources"):
        _put(done, at, shares, "eval_fraction", numbers[1], section=data, into=("data",))


def _put(
    done: Translation,
    origin: Location,
    written: Any,
    name: str,
    value: Any,
    *,
    section: dict[str, Any] | None = None,
    into: Location = (),
) -> None:
    """Set an option of ours for a key of theirs, unless the file has both."""
    section = done.content if section is None else section
    ours = ".".join(map(str, (*into, name)))
    if name in section:
        done.refuse(origin, f"{ours} says the same; leave one of them out")
        return
    section[name] = value
    done.written[(*into, name)] = done.name_of(origin)
    done.changed(origin, written, f"{ours}: {_short(value)}")


def _checkpoints(done: Translation) -> None:
    entries = done.content.get("checkpoint")
    if not isinstance(entries, list):
        return
    kept: list[Any] = []
    for number, entry in enumerate(entries):
        if isinstance(entry, dict):
            if (enabled := entry.pop("enabled", True)) is False:
                done.changed(("checkpoint", number, "enabled"), enabled, "the entry is left out")
                continue
            if enabled is not True:
                done.refuse(("checkpoint", number, "enabled"), f"{_short(enabled)} is neither true nor false")
            if entry.get("type") == "":
                del entry["type"]
            for name in ("save_every_n_steps", "save_every_n_epochs"):
                _drop_zero(entry, name)
            if entry.get("type") == "deepspeed" and entry.pop("output_dir", None):
                note = "states of `type: deepspeed` stay in the run's own folder, where a retry finds them"
                done.no_effect.append(f"checkpoint.{number}.output_dir: {note}")
        if len(kept) != number:
            done.written["checkpoint", len(kept)] = f"checkpoint.{number}"
        kept.append(entry)
    if kept:
        done.content["checkpoint"] = kept
    else:
        del done.content["checkpoint"]


def _run_length(done: Translation) -> None:
    content = done.content
    for name in ("train_iters", "min_iterations", "exit_iteration", "eval_interval", "eval_frequency"):
        _drop_zero(content, name)
    if "eval_frequency" in content:
        interval = content.pop("eval_frequency")
        _put(done, ("eval_frequency",), interval, "eval_interval", interval)
    if "train_iters" in content:
        steps = content.pop("train_iters")
        _put(done, ("train_iters",), steps, "max_steps", steps)
        if "epochs" in content:
            done.changed(("epochs",), content["epochs"], "as many as train_iters needs")
        if "min_iterations" in content:
            done.changed(("min_iterations",), content.pop("min_iterations"), "left out, as train_iters decides")
        content["epochs"] = None
    elif "min_iterations" in content:
        least, epochs = content.pop("min_iterations"), _number(content.get("epochs", 1))
        number = _number(least)
        in_all = least if number is None or epochs is None else number * epochs
        _put(done, ("min_iterations",), least, "min_steps", in_all)


def _logging(done: Translation) -> None:
    logger = _section(done.content, "logger")
    if logger.get("print_output_ranks") == "*":
        logger["print_output_ranks"] = "all"
    if isinstance(level := logger.get("level"), str):
        logger["level"] = level.upper()


def _refuse_unfiltered_rows(done: Translation) -> None:
    if _section(done.content, "data").get("filter_samples") is False:
        done.refuse(
            ("data", "filter_samples"),
            "false keeps rows longer than max_length there; here they are always rejected and counted. "
            "Raise data.max_length, and leave it out",
        )


def _drop_zero(section: dict[str, Any], name: str) -> None:
    """Leave out an interval that is 0, which means never."""
    if name in section and _number(section[name]) == 0 and not isinstance(section[name], bool):
        del section[name]


def _number(value: Any) -> float | int | None:
    if isinstance(value, str):
        try:
            return parse_number(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _short(value: Any) -> str:
    """A value as YAML has it, on one line, and not too long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class Difference:
    """A default of ArcticTraining that is not ours: the option, its value there, and the one that is used here."""

    option: str
    there: str
    here: str


@dataclass(frozen=True)
class _Default:
    """keys: any of them in the file settles it. there, here: its value there, and in an experiment, as text."""

    keys: tuple[str, ...]
    there: str
    here: Callable[[Experiment], str]
    option: str = ""


_DEFAULTS = (
    _Default(
        ("batch_rows", "micro_batch_size", "gradient_accumulation_steps"),
        "1 a rank",
        lambda e: _text(e.rows_per_step(1)),
    ),
    _Default(("optimizer.lr", "optimizer.learning_rate"), "0.0005", lambda e: _text(e.optimizer.lr)),
    _Default(("scheduler.name",), "linear", lambda e: e.scheduler.name),
    _Default(
        ("scheduler.warmup_ratio", "scheduler.warmup_steps", "scheduler.num_warmup_steps"),
        "0.1",
        lambda e: _text(e.scheduler.warmup_ratio),
    ),
    _Default(
        ("activation_checkpointing", "model.disable_activation_checkpoint"),
        "on",
        lambda e: _text(e.activation_checkpointing or e.activation_checkpoint_cpu_offload),
        "activation_checkpointing",
    ),
    _Default(("data.pack_samples",), "none", lambda e: e.data.packing),
    _Default(("data.sample_weighted_loss",), "off", lambda e: _text(e.data.sample_weighted_loss)),
    _Default(
        ("data.train_eval_split", "data.eval_fraction", "data.eval_sources[].name_or_path"),
        "0",
        lambda e: _text(e.data.eval_fraction) if not e.data.eval_sources else "0",
        "data.eval_fraction",
    ),
    _Default(("data.num_proc",), "16", lambda e: _text(e.data.num_proc)),
    _Default(("model.dtype",), "bf16", lambda e: _dtype(e.model.dtype)),
    _Default(("model.attn_implementation",), "sdpa", lambda e: e.model.attn_implementation),
    _Default(("logger.print_output_ranks",), "[0]", lambda e: _text(e.logger.print_output_ranks)),
)


def differences(done: Translation, experiment: Experiment) -> list[Difference]:
    """Where the file does not say, and ArcticTraining would use another value than the one that is used here."""
    rows = [
        (default.option or default.keys[0], default.there, default.here(experiment))
        for default in _DEFAULTS
        if not done.given & set(default.keys)
    ]
    rows += _deepspeed_rows(experiment)
    if "data.max_length" not in done.given:
        rows.append(("data.max_length", _context_of(experiment), _text(experiment.data.max_length)))
    rows += _saving_rows(done, experiment)
    if (adapters := experiment.model.peft_config) is not None:
        given = _section(_section(done.content, "model"), "peft_config")
        for name, there in (("r", "8"), ("lora_alpha", "8"), ("target_modules", "the model type's own")):
            if name not in given:
                rows.append((f"model.peft_config.{name}", there, _text(getattr(adapters, name))))
    if experiment.wandb is not None:
        for name, there in (("enable", "off"), ("project", "arctic-training")):
            if f"wandb.{name}" not in done.given:
                rows.append((f"wandb.{name}", there, _text(getattr(experiment.wandb, name))))
    return [Difference(*row) for row in rows if row[1] != row[2]]


def _deepspeed_rows(experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    # The default of gradient_clipping is 1.0 there, and DeepSpeed's own, so here as well.
    zero = experiment.deepspeed.get("zero_optimization")
    if zero is None or "stage" not in zero:
        # Without the section ArcticTraining asks for stage 2; in a section without a stage DeepSpeed takes 0.
        there = "2" if zero is None else "0"
        here = "1" if offloads_optimizer(experiment.deepspeed) else "1; 0 for one rank in fp32"
        yield "deepspeed.zero_optimization.stage", there, here


def _saving_rows(done: Translation, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
    entries = [entry for entry, _ in _sections(done.content, "checkpoint[]")]
    if not entries:
        yield "checkpoint", "nothing is saved", "the trained model is kept"
    for number, entry in enumerate(entries):
        if "save_end_of_training" not in entry:
            name = done.name_of(("checkpoint", number))
            yield f"{name}.save_end_of_training", "off", _text(experiment.checkpoint[number].save_end_of_training)


def _dtype(dtype: str) -> str:
    return "bf16 on a GPU, fp32 on a CPU" if dtype == "auto" else dtype


def _context_of(experiment: Experiment) -> str:
    """The length that ArcticTraining takes where the file has none: what the model was made for."""
    place = experiment.model.name_or_path
    try:
        config = json.loads((Path(place or "") / "config.json").read_text(encoding="utf-8"))
        return _text(config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return "the model's max_position_embeddings"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "chosen at the start" if value is None else str(value)


def report(done: Translation, experiment: Experiment) -> str | None:
    """What to know when a file of ArcticTraining is loaded, as lines of plain text; None for a file of our own."""
    if not done.is_reference:
        return None
    rows = differences(done, experiment)
    lines = [f"{experiment.name}: read as a file of ArcticTraining."]
    if rows:
        lines.append("Defaults that differ, for options that the file does not give:")
        lines += _table([("option", "ArcticTraining", "here"), *((row.option, row.there, row.here) for row in rows)])
    for title, notes in (("Translated:", done.changes), ("Without effect here:", done.no_effect)):
        if notes:
            lines += [title, *(f"  {note}" for note in notes)]
    return "\n".join(lines)


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}" for row in rows]


def markdown_table() -> str:
    """`KEYS` as the table of the documentation."""
    words = {"same": "as there", "translated": "translated", "no_effect": "no effect, named", "refused": "refused"}
    lines = ["| key | here | |", "| --- | --- | --- |"]
    for path, key in KEYS.items():
        passing = f" (passes: {', '.join(f'`{json.dumps(value)}`' for value in key.passing)})" if key.passing else ""
        lines.append(f"| `{path}` | {words[key.treatment]} | {key.note}{passing} |")
    return "\n".join(lines)
