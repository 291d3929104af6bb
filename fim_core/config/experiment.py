"""An experiment file: one YAML that drives every front door."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from fim_core.config.base import NAME_LENGTH, Section, closest
from fim_core.config.data import DataConfig
from fim_core.config.deepspeed import checked_section, offloads_optimizer
from fim_core.config.evaluation import EvaluationConfig, GateConfig
from fim_core.config.model import ModelConfig
from fim_core.config.training import (
    CheckpointConfig,
    LauncherConfig,
    LocalLauncher,
    LoggerConfig,
    LossConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrackerConfig,
)
from fim_core.config.workflow import CheckOverride, ExportsConfig, MetadataConfig, NotifyConfig, ScheduleConfig
from fim_core.config.yaml_file import read_yaml
from fim_core.errors import FimError

ELSEWHERE = {
    "train_iters": "use max_steps",
    "exit_iteration": "use max_steps",
    "min_iterations": "use epochs",
    "eval_frequency": "use eval_interval",
    "train_eval_split": "use data.eval_fraction",
    "tokenizer": "use model.tokenizer",
    "save_name": "use name",
    "disable_activation_checkpoint": "use activation_checkpointing, which is off by default",
    "save_every_n_epochs": "use save_every_n_steps",
    "auto_resume": "a stopped run always resumes from its newest state",
    "sequence_parallel_size": "a row is never split over ranks",
    "tiled_mlp_compute": "use activation_checkpointing to save memory",
    "code": "no code but the package's own is run",
}
"""What to say of options that files of ArcticTraining may hold and that are not done here, or are named otherwise."""


def default_storage() -> Path:
    """$FIM_STORAGE, or .fim in the current folder; an empty variable counts as unset."""
    return Path(os.environ.get("FIM_STORAGE", "").strip() or ".fim").expanduser()


class Experiment(Section):
    """Everything that decides what is trained, on what, and how."""

    type: Literal["sft"] = Field("sft", description="Supervised fine-tuning.")
    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=NAME_LENGTH,
        description="Default: the file's name.",
    )
    seed: int = Field(42, ge=0, description="Seed of everything random.")
    storage: Path = Field(
        default_factory=default_storage,
        validate_default=True,
        description="Folder of all artifacts. Default: $FIM_STORAGE, or .fim in the current folder.",
    )

    model: ModelConfig
    data: DataConfig

    micro_batch_size: int = Field(1, ge=1, description="Packs that one rank runs through the model at once.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Micro-batches of a rank in one optimizer step.")
    epochs: int = Field(1, ge=1, description="Passes over the training rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many optimizer steps.")
    eval_interval: int | None = Field(
        None, ge=1, description="Optimizer steps between evaluations of the held-out loss."
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    loss: LossConfig = LossConfig()
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    activation_checkpoint_cpu_offload: bool = Field(
        False, description="Keep checkpointed activations in host memory; implies activation_checkpointing."
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="Passed to DeepSpeed: zero_optimization, offload, gradient_clipping, …"
    )
    checkpoint: list[CheckpointConfig] = Field([CheckpointConfig()], description="What is saved, and when.")
    launcher: LauncherConfig = Field(LocalLauncher(), description="Where training processes run.")
    logger: LoggerConfig = LoggerConfig()
    tensorboard: TrackerConfig | None = None
    wandb: TrackerConfig | None = None
    trackio: TrackerConfig | None = None

    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    checks: dict[str, CheckOverride] = Field({}, description="Changes to data-quality checks, by check name.")
    schedule: ScheduleConfig = ScheduleConfig()
    exports: ExportsConfig | None = Field(None, description="Watch a folder for new exports. Default: no folder.")
    notify: NotifyConfig = NotifyConfig()
    metadata: MetadataConfig = MetadataConfig()

    @field_validator("storage", mode="before")
    @classmethod
    def _at_home(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("an empty name is no folder; leave storage out for $FIM_STORAGE, or .fim")
        return os.path.expanduser(value) if isinstance(value, str) else value

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("checkpoint")
    @classmethod
    def _places_of_their_own(cls, value: list[CheckpointConfig]) -> list[CheckpointConfig]:
        places = [os.path.realpath(entry.output_dir) for entry in value if entry.output_dir]
        if len(set(places)) < len(places):
            raise ValueError("two entries have the same output_dir, where each would remove what the other keeps")
        return value

    @field_validator("deepspeed")
    @classmethod
    def _passed_to_deepspeed(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_section(value)

    @field_validator("checks")
    @classmethod
    def _known_checks(cls, value: dict[str, CheckOverride]) -> dict[str, CheckOverride]:
        # The checks are files, listed by a package that itself builds on this one.
        from fim_core.quality.run import known_checks

        known = sorted(known_checks()) if value else []
        if unknown := [f"{name}{closest(name, known)}" for name in value if name not in known]:
            raise ValueError(f"no such check: {', '.join(unknown)} (there are {', '.join(known)})")
        return value

    @model_validator(mode="after")
    def _cpu_adam_needs_offload(self) -> Experiment:
        if self.optimizer.type == "cpu_adam" and not offloads_optimizer(self.deepspeed):
            raise ValueError(
                "optimizer.type cpu_adam needs deepspeed.zero_optimization.offload_optimizer: {device: cpu}"
            )
        return self

    @model_validator(mode="after")
    def _eval_needs_rows(self) -> Experiment:
        if self.eval_interval and not self.data.eval_sources and self.data.eval_fraction == 0:
            raise ValueError("eval_interval is set, but there are no held-out rows: give eval_sources or eval_fraction")
        return self


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment file.

    Relative paths inside it are taken from the current folder, as in the tools whose files this format follows.

    Raises:
        FimError: no such file, not YAML, an unknown key or a bad value; the message names each key.
    """
    path = Path(path)
    if not path.is_file():
        raise FimError(f"There is no experiment file {path}. Give the path of a YAML file, such as configs/demo.yaml.")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FimError(f"{path} is not valid YAML: {error}") from error
    except OSError as error:
        raise FimError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict):
        raise FimError(f"{path} holds no options. It needs at least `model` and `data`; see configs/demo.yaml.")
    if "name" not in content:
        content["name"] = _name_of(path)
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise FimError(f"{path} has options that cannot be used:\n{_explain(error)}") from error


def _name_of(path: Path) -> str:
    """The name of an experiment that gives none: that of its file, with `-` for what a folder is better not called.

    Raises:
        FimError: nothing is left of it.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-_.")[:NAME_LENGTH]
    if not name:
        raise FimError(f"{path}: no name can be made of the file's; give the key `name`, in letters and digits.")
    return name


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "(file)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: no such option{_instead(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"  {key}: missing")
        else:
            lines.append(f"  {key}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _instead(location: tuple[int | str, ...]) -> str:
    """What stands in an unknown option's place, or a hint at the one that was probably meant, or nothing."""
    if location[-1] in ELSEWHERE:
        return f"; {ELSEWHERE[str(location[-1])]}"
    known = _option_names(Experiment)
    return " here" if location[-1] in known else closest(str(location[-1]), sorted(known))


def _option_names(section: type[Section]) -> set[str]:
    from typing import get_args

    names: set[str] = set()
    pending: list[Any] = [section]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, Section):
            names |= set(kind.model_fields)
            pending += [field.annotation for field in kind.model_fields.values()]
        else:
            pending += get_args(kind)
    return names
