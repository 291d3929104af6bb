"""Sections of the training loop: `optimizer`, `scheduler`, `checkpoint`, `loss`, `logger` and trackers."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from fim_core.config.base import FolderName, PathOrId, Section, closest

DEFAULT_WARMUP_RATIO = 0.05


class OptimizerConfig(Section):
    """`optimizer`: AdamW. A validated experiment has replaced `lr: None` by its default."""

    type: Literal["adamw", "cpu_adam"] = Field(
        "adamw",
        description="adamw, or cpu_adam, which keeps its state in host memory (needs DeepSpeed's optimizer offload).",
    )
    lr: float | None = Field(
        None,
        gt=0,
        validation_alias=AliasChoices("lr", "learning_rate"),
        description="Peak learning rate. Default: 2e-4 for LoRA adapters, 2e-5 for all weights of a pretrained model, "
        "1e-3 for a model from scratch.",
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay; not applied to biases and norms.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay rates of the first and second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator of the update.")


class SchedulerArgs(Section):
    """`scheduler.scheduler_specific_kwargs`: arguments of a schedule besides warm-up and number of steps."""

    min_lr_rate: float | None = Field(None, ge=0, le=1, description="Floor of the cosine as a share of the peak.")
    min_lr: float | None = Field(None, ge=0, description="Floor of the cosine as a learning rate.")
    warmup_lr_rate: float | None = Field(None, ge=0, le=1, description="Start of the warm-up as a share of the peak.")
    num_cycles: float | None = Field(
        None, gt=0, description="Number of cosine cycles; a whole number for cosine_with_restarts."
    )
    lr_end: float | None = Field(None, ge=0, description="Final learning rate of polynomial.")
    power: float | None = Field(None, gt=0, description="Exponent of polynomial.")
    timescale: int | None = Field(
        None, ge=1, description="Time scale of inverse_sqrt in steps. Default: the length of the warm-up."
    )
    num_decay_steps: int | None = Field(None, ge=0, description="Steps of the final decay.")
    num_stable_steps: int | None = Field(
        None, ge=0, description="Steps between warm-up and decay. Default: all remaining steps."
    )
    warmup_type: Literal["linear", "cosine", "1-sqrt"] | None = Field(None, description="Shape of the warm-up.")
    decay_type: Literal["linear", "cosine", "1-sqrt"] | None = Field(None, description="Shape of the decay.")
    min_lr_ratio: float | None = Field(None, ge=0, le=1, description="Floor of the decay as a share of the peak.")


SCHEDULES: dict[str, frozenset[str]] = {
    "constant": frozenset(),
    "constant_with_warmup": frozenset(),
    "linear": frozenset(),
    "cosine": frozenset({"num_cycles"}),
    "cosine_with_restarts": frozenset({"num_cycles"}),
    "polynomial": frozenset({"lr_end", "power"}),
    "inverse_sqrt": frozenset({"timescale"}),
    "cosine_with_min_lr": frozenset({"num_cycles", "min_lr", "min_lr_rate"}),
    "cosine_warmup_with_min_lr": frozenset({"num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"}),
    "warmup_stable_decay": frozenset(
        {"num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"}
    ),
}
"""Schedules of transformers that depend on the step only, and the arguments of each."""

_FOLLOWS_A_METRIC = ("reduce_lr_on_plateau", "greedy")


class SchedulerConfig(Section):
    """`scheduler`: the learning-rate schedule."""

    type: Literal["huggingface"] = Field("huggingface", description="Library that the schedules come from.")
    name: str = Field("cosine", description=f"Name of the schedule: {', '.join(SCHEDULES)}.")
    warmup_ratio: float = Field(
        default_factory=lambda section: 0.0 if section.get("name") == "constant" else DEFAULT_WARMUP_RATIO,
        ge=0,
        le=1,
        description="Warm-up as a share of all optimizer steps. Default: 0.05, or 0 for `constant`.",
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("warmup_steps", "num_warmup_steps"),
        description="Warm-up in optimizer steps, instead of warmup_ratio.",
    )
    scheduler_specific_kwargs: SchedulerArgs = Field(SchedulerArgs(), description="Arguments of the schedule.")

    @field_validator("name")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        if value in _FOLLOWS_A_METRIC:
            raise ValueError(f"{value} depends on a metric, not on the step; choose one of {', '.join(SCHEDULES)}")
        if value not in SCHEDULES:
            raise ValueError(f"no such schedule: {value}{closest(value, list(SCHEDULES))} ({', '.join(SCHEDULES)})")
        return value

    @model_validator(mode="after")
    def _arguments_belong_to_the_schedule(self) -> SchedulerConfig:
        given = self.scheduler_specific_kwargs.model_dump(exclude_none=True)
        taken = SCHEDULES[self.name]
        if foreign := sorted(given.keys() - taken):
            known = f"its arguments are {', '.join(sorted(taken))}" if taken else "it takes none"
            raise ValueError(f"{foreign[0]} is not an argument of the schedule {self.name}: {known}")
        floors = given.keys() & {"min_lr", "min_lr_rate"}
        if "min_lr" in taken and len(floors) != 1:
            raise ValueError(f"{self.name} needs one of min_lr and min_lr_rate in scheduler_specific_kwargs")
        if self.name == "warmup_stable_decay" and "num_decay_steps" not in given:
            raise ValueError("warmup_stable_decay needs num_decay_steps in scheduler_specific_kwargs")
        if self.name == "cosine_with_restarts" and given.get("num_cycles", 1) % 1:
            raise ValueError("num_cycles must be a whole number for cosine_with_restarts")
        return self

    @model_validator(mode="after")
    def _constant_has_no_warmup(self) -> SchedulerConfig:
        if self.name == "constant" and (self.warmup_ratio if self.warmup_steps is None else self.warmup_steps):
            raise ValueError("`constant` has no warm-up; use constant_with_warmup, or leave the warm-up out")
        return self


class CheckpointConfig(Section):
    """One entry of `checkpoint`."""

    type: Literal["huggingface", "deepspeed"] = Field(
        "huggingface",
        description="huggingface: weights and tokenizer, for loading and serving. deepspeed: full training state, for "
        "resuming.",
    )
    save_every_n_steps: int | None = Field(None, ge=1, description="Optimizer steps between saves.")
    save_every_n_epochs: int | None = Field(None, ge=1, description="Epochs between saves.")
    save_end_of_training: bool = Field(True, description="Save after the last step.")
    output_dir: PathOrId | None = Field(
        None, description="For huggingface: folder for the weights, saved as `<experiment>-<version>/step-N`."
    )
    keep: int = Field(2, ge=1, description="Number of the run's newest saves to keep.")

    @model_validator(mode="after")
    def _saves_something(self) -> CheckpointConfig:
        if self.type == "deepspeed" and self.output_dir:
            raise ValueError("`type: deepspeed` saves into the run's own folder; leave output_dir out")
        if not (self.save_end_of_training or self.save_every_n_steps or self.save_every_n_epochs):
            raise ValueError(
                "an entry with none of save_every_n_steps, save_every_n_epochs and save_end_of_training saves nothing"
            )
        if self.type == "huggingface" and not self.save_end_of_training and not self.output_dir:
            raise ValueError(
                "the final model is always saved: set output_dir to save intermediate weights as well, or leave "
                "save_end_of_training on"
            )
        return self


class LossConfig(Section):
    """`loss`: additions to the cross entropy; off by default."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread evenly over the vocabulary."
    )
    z_loss: float = Field(0.0, ge=0, description="Weight of the squared log-partition, which keeps logits small.")


class TrackerConfig(Section):
    """One experiment tracker, in addition to `metrics.jsonl`, which is always written.

    Its local files (TensorBoard events, wandb runs) are kept in the checkpoint's folder `trackers`.
    """

    enable: bool = Field(True, description="Whether to send metrics to the tracker.")
    project: FolderName = Field("fim", description="Project of the run.")
    name: FolderName | None = Field(None, description="Name of the run. Default: the experiment's.")


class WandbConfig(TrackerConfig):
    """`wandb`: Weights & Biases."""

    entity: str | None = Field(None, description="Team or user that owns the project. Default: the account's.")


class LoggerConfig(Section):
    """`logger`: log output of the training processes."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("WARNING", description="Lowest level that is written.")
    output_dir: PathOrId | None = Field(
        None, description="Folder for the logs, `<experiment>-<version>/rank-N.log`. Default: the run's work folder."
    )
    print_output_ranks: list[int] | Literal["all"] = Field(
        "all", description="Ranks whose log is also shown in the console and in the log of the Dagster run."
    )
