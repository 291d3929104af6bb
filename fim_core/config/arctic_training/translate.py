"""Translation of ArcticTraining's experiment files to our format."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fim_core.config.arctic_training.keys import KEYS, NO_EXPERT_PARALLELISM
from fim_core.config.numbers import parse_number

Location = tuple[int | str, ...]

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
    """An experiment file in our format.

    Attributes:
        content: the options to validate.
        given: paths of all keys of the file.
        written: the key in the file that a value of `content` comes from, by location.
        changes, no_effect: sentences about translated keys, and about keys without effect.
        refused: sentences about refused keys.
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
        """The key at a location of `content`, as spelled in the file."""
        for length in range(len(location), 0, -1):
            if (name := self.written.get(location[:length])) is not None:
                return ".".join([name, *map(str, location[length:])])
        return ".".join(map(str, location))

    def refuse(self, location: Location, reason: str) -> None:
        """Record that the value at a location is refused."""
        self.refused.append(f"{self.name_of(location)}: {reason}")

    def changed(self, location: Location, value: Any, becomes: str) -> None:
        """Record how a key was translated."""
        self.changes.append(f"{self.name_of(location)}: {_short(value)} -> {becomes}")


def translate(raw: Mapping[str, Any]) -> Translation:
    """Translate a file's names, values and switches to ours.

    Values of an unexpected type are left unchanged for validation to refuse.
    """
    paths = frozenset(_paths(raw))
    if raw.get("type", "sft") != "sft":
        done = Translation(dict(raw), paths)
        done.refuse(("type",), f"the trainer {_short(raw['type'])} is not supported; only `sft` is")
        return done
    done = Translation(copy.deepcopy(dict(raw)), paths)
    _list_entries(done.content)
    spelled = _settle_known_keys(done)
    for step in (_model, _tokenizer, _optimizer, _deepspeed, _data, _checkpoints, _run_length, _logging):
        step(done)
    own = paths - KEYS.keys()
    done.is_reference = not own or spelled or bool(done.changes or done.no_effect or done.refused)
    if done.is_reference and not own:
        _refuse_unfiltered_rows(done)
    return done


def _paths(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all keys, down to those whose values are free-form mappings."""
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
    """Convert every source and checkpoint to a list of sections."""
    if isinstance(content.get("checkpoint"), dict):
        content["checkpoint"] = [content["checkpoint"]]
    data = section_of(content, "data")
    for part in ("sources", "eval_sources"):
        entries = data.get(part)
        if isinstance(entries, str | dict):
            entries = [entries]
        if isinstance(entries, list):
            data[part] = [{"name_or_path": entry} if isinstance(entry, str) else entry for entry in entries]


def sections_at(content: Any, path: str) -> Iterator[tuple[dict[str, Any], Location]]:
    """The sections at a path (`data.sources[]`), each with its location; values that are not sections are skipped."""
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


def section_of(content: dict[str, Any], name: str) -> dict[str, Any]:
    """A top-level section; empty if it is missing or not a mapping."""
    section = content.get(name)
    return section if isinstance(section, dict) else {}


def _settle_known_keys(done: Translation) -> bool:
    """Remove keys that are refused or have no effect. Returns whether there was any, whatever its value."""
    found = False
    for path, key in KEYS.items():
        if key.treatment not in ("refused", "no_effect"):
            continue
        parent, _, name = path.rpartition(".")
        for section, at in sections_at(done.content, parent):
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
    """Whether a value equals one of the others; numbers may be given as text, and `true` does not equal 1."""
    for other in others:
        is_number = isinstance(other, int | float) and not isinstance(other, bool)
        if (_number(value) if is_number else value) == other and (is_number or type(value) is type(other)):
            return True
    return False


def _model(done: Translation) -> None:
    model = section_of(done.content, "model")
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
    optimizer = section_of(done.content, "optimizer")
    if not isinstance(kind := optimizer.get("type"), str):
        return
    spelling = re.sub(r"[^a-z]", "", kind.lower())
    if spelling.endswith("adammoe"):
        done.refuse(("optimizer", "type"), f"{kind}: {NO_EXPERT_PARALLELISM}")
        del optimizer["type"]
    elif not kind:
        del optimizer["type"]
    else:
        optimizer["type"] = next((name for name, names in _OPTIMIZERS.items() if spelling in names), kind)


def _deepspeed(done: Translation) -> None:
    section, name = section_of(done.content, "deepspeed"), "seq_parallel_communication_data_type"
    if name in section and _number(done.content.get("sequence_parallel_size", 1)) == 1:
        del section[name]
        done.no_effect.append(f"deepspeed.{name}: sequence_parallel_size is 1")


def _data(done: Translation) -> None:
    data = section_of(done.content, "data")
    for part, split in (("sources", "train"), ("eval_sources", "eval")):
        for source, at in sections_at(done.content, f"data.{part}[]"):
            _source(done, source, at, split)
    seed = done.content.get("seed", 42)
    if "seed" in data and _number(given := data.pop("seed")) != _number(seed):
        done.refuse(("data", "seed"), f"{_short(given)} differs from `seed` ({_short(seed)}), which decides everything")
    if "train_eval_split" in data:
        _train_eval_split(done, data, data.pop("train_eval_split"))


def _source(done: Translation, source: dict[str, Any], at: Location, default_split: str) -> None:
    if source.get("type") in ("", None):
        source.pop("type", None)
    if source.get("type") == "snowflake_table":
        source["type"] = "snowflake"
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
        done.refuse((*at, "split_mapping"), "must be a section, for example {train: train_sft}")
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
    logger = section_of(done.content, "logger")
    if logger.get("print_output_ranks") == "*":
        logger["print_output_ranks"] = "all"
    if isinstance(level := logger.get("level"), str):
        logger["level"] = level.upper()


def _refuse_unfiltered_rows(done: Translation) -> None:
    if section_of(done.content, "data").get("filter_samples") is False:
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
    """A value on one line, shortened to 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
