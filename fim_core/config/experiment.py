"""The experiment: all options of a training run and its pipeline."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from fim_core.config.base import NAME_LENGTH, Section, closest
from fim_core.config.data import DataConfig
from fim_core.config.deepspeed import checked_section, offloads_optimizer
from fim_core.config.evaluation import EvaluationConfig, GateConfig, ServingConfig
from fim_core.config.launchers import LAUNCHER_TYPES, LauncherConfig, LauncherSection, LocalLauncher
from fim_core.config.model import ModelConfig, TrainedTokenizer
from fim_core.config.publishing import PublishTarget
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
"""Default peak learning rates, by `ModelConfig.trains`."""


def default_storage() -> Path:
    """$FIM_STORAGE, or .fim in the current folder if the variable is unset or empty."""
    return Path(os.environ.get("FIM_STORAGE", "").strip() or ".fim").expanduser()


DEFAULT_BATCH_ROWS = 16


class Experiment(Section):
    """All options of a training run and its pipeline."""

    type: Literal["sft"] = Field("sft", description="Supervised fine-tuning.")
    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=NAME_LENGTH,
        description="Name of the experiment. Default: the file's name.",
    )
    seed: int = Field(42, ge=0, description="Seed of all random choices without a seed option of their own.")
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
        """The file that the experiment's name was derived from; None if the file sets `name`."""
        return self._named_by

    def of_day(self, day: date) -> Experiment:
        """The same options for preparing the rows of a single day, under a name of its own.

        Which rows are held out is decided over all days, so a day's own share is not checked.
        """
        checks = self.checks | {"held_out_share": CheckOverride(severity="off")}
        update = {"name": f"{self.name}.{day}", "data": self.data.of_day(day), "checks": checks}
        return self.model_copy(update=update)

    batch_rows: int | None = Field(
        None,
        ge=1,
        description=f"Rows per optimizer step, over all ranks, micro-batches and packs. Default: {DEFAULT_BATCH_ROWS}, "
        "or micro_batch_size x gradient_accumulation_steps x ranks / sequence_parallel_size if either of the first two is "
        "set.",
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="Rows per micro-batch of a rank; used only as a factor of batch_rows."
    )
    gradient_accumulation_steps: int | None = Field(
        None, ge=1, description="Micro-batches per optimizer step of a rank; used only as a factor of batch_rows."
    )
    epochs: int | None = Field(1, ge=1, description="Passes over the training rows; null: as many as max_steps needs.")
    max_steps: int | None = Field(
        None, ge=1, description="Maximum number of optimizer steps; the learning-rate schedule ends there."
    )
    min_steps: int | None = Field(
        None, ge=1, description="Minimum number of optimizer steps; epochs are repeated until it is reached."
    )
    exit_iteration: int | None = Field(
        None, ge=1, description="Stop after this many optimizer steps, without shortening the learning-rate schedule."
    )
    eval_interval: int | None = Field(
        None, ge=1, description="Optimizer steps between evaluations of the held-out loss."
    )
    loss_log_interval: int = Field(
        1, ge=0, description="Optimizer steps between log lines with the loss (at logger.level INFO); 0: no lines."
    )
    optimizer: OptimizerConfig = Field(OptimizerConfig(), validate_default=True)
    scheduler: SchedulerConfig = SchedulerConfig()
    loss: LossConfig = LossConfig()
    sequence_parallel_size: int = Field(
        1,
        ge=1,
        description="Ranks that divide the tokens of each pack among them, for rows that are too long for one. It divides "
        "the number of ranks and the number of attention heads; loss and gradient do not depend on it.",
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass instead of storing them."
    )
    activation_checkpoint_cpu_offload: bool = Field(
        False, description="Keep checkpointed activations in host memory; implies activation_checkpointing."
    )
    tiled_mlp_compute: bool = Field(
        False,
        description="Compute MLPs and norms in tiles of tokens and recompute them in the backward pass, which takes less "
        "memory for long packs, and more time.",
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        validate_default=True,
        description="Options passed to DeepSpeed: zero_optimization, gradient_clipping (default 1.0; 0 is off), … "
        "Default of zero_optimization.stage: 0 for one rank in fp32, otherwise 1.",
    )
    checkpoint: list[CheckpointConfig] = Field([CheckpointConfig()], description="What to save, and when.")
    launcher: LauncherConfig = Field(LocalLauncher(), description="Where training processes run.")
    logger: LoggerConfig = LoggerConfig()
    tensorboard: TrackerConfig | None = None
    wandb: WandbConfig | None = None
    trackio: TrackerConfig | None = None

    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    serving: ServingConfig = ServingConfig()
    publish: list[PublishTarget] = Field(
        [],
        description="Where each new champion is published. A bare path or URL is short for `{type: folder, path: …}`.",
    )
    checks: dict[str, CheckOverride] = Field({}, description="Overrides of data-quality checks, by check name.")
    retraining: RetrainingConfig = RetrainingConfig()
    exports: ExportsConfig | None = Field(None, description="Folder to watch for new exports. Default: none.")
    notify: NotifyConfig = NotifyConfig()
    metadata: MetadataConfig = MetadataConfig()

    @field_validator("storage", mode="before")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("the path is empty; leave storage out to use $FIM_STORAGE or .fim")
        return os.path.expanduser(value) if isinstance(value, str) else value

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("checkpoint")
    @classmethod
    def _distinct_output_dirs(cls, value: list[CheckpointConfig]) -> list[CheckpointConfig]:
        places = [os.path.realpath(entry.output_dir) for entry in value if entry.output_dir]
        if len(set(places)) < len(places):
            raise ValueError("two entries have the same output_dir, so each would delete checkpoints of the other")
        return value

    @field_validator("optimizer")
    @classmethod
    def _default_learning_rate(cls, value: OptimizerConfig, info: ValidationInfo) -> OptimizerConfig:
        model: ModelConfig | None = info.data.get("model")  # None: the section itself is invalid
        if value.lr is not None or model is None:
            return value
        return value.model_copy(update={"lr": DEFAULT_LEARNING_RATES[model.trains]})

    @field_validator("deepspeed")
    @classmethod
    def _check_deepspeed(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_section(value)

    @field_validator("checks")
    @classmethod
    def _known_checks(cls, value: dict[str, CheckOverride]) -> dict[str, CheckOverride]:
        # Imported here because it loads DuckDB.
        from fim_core.quality.run import known_checks

        known = sorted(known_checks()) if value else []
        if unknown := [f"{name}{closest(name, known)}" for name in value if name not in known]:
            raise ValueError(f"no such check: {', '.join(unknown)} (there are {', '.join(known)})")
        return value

    @model_validator(mode="after")
    def _dated_rows_need_a_tokenizer(self) -> Experiment:
        if self.data.is_dated and isinstance(self.model.tokenizer, TrainedTokenizer):
            raise ValueError(
                "model.tokenizer would be trained again on the rows of every day, which changes all prompts. Give the path "
                "of a tokenizer, or list the exports without {date}"
            )
        return self

    @model_validator(mode="after")
    def _one_batch_size(self) -> Experiment:
        given = [key for key in ("micro_batch_size", "gradient_accumulation_steps") if getattr(self, key) is not None]
        if given and self.batch_rows is not None:
            raise ValueError(
                f"batch_rows and {' and '.join(given)} both set the rows of an optimizer step. Give batch_rows, "
                "or micro_batch_size and gradient_accumulation_steps (times the number of ranks)"
            )
        return self

    @property
    def batch_grows_with_ranks(self) -> bool:
        """Whether the batch size is given per rank, by micro_batch_size and gradient_accumulation_steps."""
        return self.micro_batch_size is not None or self.gradient_accumulation_steps is not None

    def rows_per_step(self, data_ranks: int) -> int:
        """Rows of one optimizer step on so many ranks, counting those that share packs as one."""
        if self.batch_grows_with_ranks:
            return (self.micro_batch_size or 1) * (self.gradient_accumulation_steps or 1) * data_ranks
        return self.batch_rows or DEFAULT_BATCH_ROWS

    @model_validator(mode="after")
    def _ranks_divide_sequences(self) -> Experiment:
        size = self.sequence_parallel_size
        # Without num_processes, or with a hostfile, the number of ranks is known only where the run starts.
        known = self.launcher.num_processes is not None and self.launcher.type != "hostfile"
        if known and (ranks := self.launcher.world_size()) % size:
            raise ValueError(
                f"sequence_parallel_size is {size}, but the launcher starts {ranks} ranks, which is not a multiple of it"
            )
        return self

    @model_validator(mode="after")
    def _cpu_adam_needs_offload(self) -> Experiment:
        if self.optimizer.type == "cpu_adam" and not offloads_optimizer(self.deepspeed):
            raise ValueError(
                "optimizer.type cpu_adam needs deepspeed.zero_optimization.offload_optimizer: {device: cpu}"
            )
        return self

    @model_validator(mode="after")
    def _floor_below_peak(self) -> Experiment:
        floors = self.scheduler.scheduler_specific_kwargs.model_dump(include={"min_lr", "lr_end"}, exclude_none=True)
        if self.scheduler.name == "polynomial":
            floors.setdefault("lr_end", 1e-7)  # transformers' default
        for name, floor in floors.items():
            if self.optimizer.lr is not None and floor >= self.optimizer.lr:
                raise ValueError(
                    f"scheduler.scheduler_specific_kwargs.{name} is {floor:g}; it must be below the peak learning rate, "
                    f"optimizer.lr {self.optimizer.lr:g}"
                )
        return self

    @model_validator(mode="after")
    def _run_has_an_end(self) -> Experiment:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("`epochs: null` needs max_steps")
        if self.max_steps is not None and self.min_steps is not None and self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} is larger than max_steps {self.max_steps}")
        return self

    @model_validator(mode="after")
    def _eval_needs_rows(self) -> Experiment:
        if self.eval_interval and not self.data.eval_sources and self.data.eval_fraction == 0:
            raise ValueError("eval_interval is set, but there are no held-out rows: give eval_sources or eval_fraction")
        return self

    @model_validator(mode="after")
    def _latency_rules_need_rows(self) -> Experiment:
        asked = [rule.metric for rule in self.gate.rules if rule.is_latency]
        if asked and self.evaluation.latency_rows == 0:
            raise ValueError(
                f"gate.rules has {asked[0]}, but no latency is measured: set evaluation.latency_rows, for example to 100, or "
                "remove the rule"
            )
        return self


def register_launcher_options(options: type[LauncherSection]) -> None:
    """Add a launcher type to experiment files. `options.type` is a Literal with its name.

    The function that starts its ranks is registered with `fim_core.launchers.base.register`.
    """
    (kind,) = get_args(options.model_fields["type"].annotation)
    LAUNCHER_TYPES[kind] = options
    Experiment.model_rebuild(force=True)
