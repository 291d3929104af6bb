"""An experiment: everything that decides what is trained, on what, and how."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from fim_core.config.base import NAME_LENGTH, Section, closest
from fim_core.config.data import DataConfig
from fim_core.config.deepspeed import checked_section, offloads_optimizer
from fim_core.config.evaluation import EvaluationConfig, GateConfig
from fim_core.config.launchers import LAUNCHER_TYPES, LauncherConfig, LauncherSection, LocalLauncher
from fim_core.config.model import ModelConfig
from fim_core.config.training import (
    CheckpointConfig,
    LoggerConfig,
    LossConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrackerConfig,
    WandbConfig,
)
from fim_core.config.workflow import CheckOverride, ExportsConfig, MetadataConfig, NotifyConfig, RetrainingConfig

DEFAULT_LEARNING_RATES = {"adapters": 2e-4, "pretrained": 2e-5, "scratch": 1e-3}
"""By what is trained (`ModelConfig.trains`)."""


def default_storage() -> Path:
    """$FIM_STORAGE, or .fim in the current folder; an empty variable counts as unset."""
    return Path(os.environ.get("FIM_STORAGE", "").strip() or ".fim").expanduser()


DEFAULT_BATCH_ROWS = 16


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

    _named_by: Path | None = PrivateAttr(None)

    @property
    def named_by(self) -> Path | None:
        """The file whose name the experiment has; None where it was given one."""
        return self._named_by

    batch_rows: int | None = Field(
        None,
        ge=1,
        description=f"Rows of one optimizer step, over all ranks, micro-batches and packs. Default: {DEFAULT_BATCH_ROWS}, "
        "or micro_batch_size x gradient_accumulation_steps x ranks if either is given.",
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="Rows of a micro-batch on one rank; only as a factor of batch_rows."
    )
    gradient_accumulation_steps: int | None = Field(
        None, ge=1, description="Micro-batches of a rank in one optimizer step; only as a factor of batch_rows."
    )
    epochs: int | None = Field(1, ge=1, description="Passes over the training rows; null: as many as max_steps needs.")
    max_steps: int | None = Field(None, ge=1, description="Most optimizer steps of the run; its schedule ends there.")
    min_steps: int | None = Field(
        None, ge=1, description="Least optimizer steps of the run: rows are passed over again until then."
    )
    exit_iteration: int | None = Field(
        None, ge=1, description="Stop after so many optimizer steps, with the schedule of the whole run."
    )
    eval_interval: int | None = Field(
        None, ge=1, description="Optimizer steps between evaluations of the held-out loss."
    )
    loss_log_interval: int = Field(
        1, ge=0, description="Optimizer steps between lines with the loss in the log, at logger.level INFO; 0: none."
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), validate_default=True)
    scheduler: SchedulerConfig = SchedulerConfig()
    loss: LossConfig = LossConfig()
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    activation_checkpoint_cpu_offload: bool = Field(
        False, description="Keep checkpointed activations in host memory; implies activation_checkpointing."
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        validate_default=True,
        description="Passed to DeepSpeed: zero_optimization, offload, gradient_clipping (default 1.0; 0 is off), … "
        "Without zero_optimization.stage: 0 for one rank in fp32, otherwise 1.",
    )
    checkpoint: list[CheckpointConfig] = Field([CheckpointConfig()], description="What is saved, and when.")
    launcher: LauncherConfig = Field(LocalLauncher(), description="Where training processes run.")
    logger: LoggerConfig = LoggerConfig()
    tensorboard: TrackerConfig | None = None
    wandb: WandbConfig | None = None
    trackio: TrackerConfig | None = None

    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    checks: dict[str, CheckOverride] = Field({}, description="Changes to data-quality checks, by check name.")
    retraining: RetrainingConfig = RetrainingConfig()
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

    @field_validator("optimizer")
    @classmethod
    def _rate_by_what_is_trained(cls, value: OptimizerConfig, info: ValidationInfo) -> OptimizerConfig:
        model: ModelConfig | None = info.data.get("model")  # None: it has mistakes of its own
        if value.lr is not None or model is None:
            return value
        return value.model_copy(update={"lr": DEFAULT_LEARNING_RATES[model.trains]})

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
    def _one_batch(self) -> Experiment:
        given = [key for key in ("micro_batch_size", "gradient_accumulation_steps") if getattr(self, key) is not None]
        if given and self.batch_rows is not None:
            raise ValueError(
                f"batch_rows and {' and '.join(given)} both say how many rows an optimizer step takes. Give batch_rows, "
                "or micro_batch_size and gradient_accumulation_steps, whose product times the ranks it is"
            )
        return self

    @property
    def batch_grows_with_ranks(self) -> bool:
        """Whether the batch is given by micro_batch_size and gradient_accumulation_steps, so for each rank."""
        return self.micro_batch_size is not None or self.gradient_accumulation_steps is not None

    def rows_per_step(self, ranks: int) -> int:
        """Rows of one optimizer step on so many ranks."""
        if self.batch_grows_with_ranks:
            return (self.micro_batch_size or 1) * (self.gradient_accumulation_steps or 1) * ranks
        return self.batch_rows or DEFAULT_BATCH_ROWS

    @model_validator(mode="after")
    def _cpu_adam_needs_offload(self) -> Experiment:
        if self.optimizer.type == "cpu_adam" and not offloads_optimizer(self.deepspeed):
            raise ValueError(
                "optimizer.type cpu_adam needs deepspeed.zero_optimization.offload_optimizer: {device: cpu}"
            )
        return self

    @model_validator(mode="after")
    def _rate_falls_to_its_floor(self) -> Experiment:
        floors = self.scheduler.scheduler_specific_kwargs.model_dump(include={"min_lr", "lr_end"}, exclude_none=True)
        if self.scheduler.name == "polynomial":
            floors.setdefault("lr_end", 1e-7)  # transformers' default
        for name, floor in floors.items():
            if self.optimizer.lr is not None and floor >= self.optimizer.lr:
                raise ValueError(
                    f"scheduler.scheduler_specific_kwargs.{name} is {floor:g}, which is not below the peak, "
                    f"optimizer.lr {self.optimizer.lr:g}"
                )
        return self

    @model_validator(mode="after")
    def _run_has_an_end(self) -> Experiment:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("`epochs: null` needs max_steps")
        if self.max_steps is not None and self.min_steps is not None and self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is more than max_steps {self.max_steps}")
        return self

    @model_validator(mode="after")
    def _eval_needs_rows(self) -> Experiment:
        if self.eval_interval and not self.data.eval_sources and self.data.eval_fraction == 0:
            raise ValueError("eval_interval is set, but there are no held-out rows: give eval_sources or eval_fraction")
        return self


def register_launcher_options(options: type[LauncherSection]) -> None:
    """Let experiments choose a launcher of one's own: its `type`, with these options.

    What starts its ranks is registered by `fim_core.launchers.base.register`.
    """
    (kind,) = get_args(options.model_fields["type"].annotation)
    LAUNCHER_TYPES[kind] = options
    Experiment.model_rebuild(force=True)
