"""The sections `optimizer`, `scheduler`, `checkpoint` and those of trackers: how a run trains."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, Field, field_validator, model_validator

from fim_core.config.base import FolderName, Place, Section, closest

DEFAULT_WARMUP_RATIO = 0.05


class OptimizerConfig(Section):
    """`optimizer`: AdamW and its numbers. `lr` is never None in a validated experiment, which fills in its default."""

    type: Literal["adamw", "cpu_adam"] = Field(
        "adamw", description="adamw; cpu_adam keeps its state in host memory (needs DeepSpeed's optimizer offload)."
    )
    lr: float | None = Field(
        None,
        gt=0,
        validation_alias=AliasChoices("lr", "learning_rate"),
        description="Peak learning rate. Default, by what is trained: 2e-4 for LoRA adapters, 2e-5 for all weights of a "
        "pretrained model, 1e-3 for a model from scratch.",
    )
    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay; not applied to biases and norms.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of the first and second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the denominator.")


class SchedulerArgs(Section):
    """`scheduler.scheduler_specific_kwargs`: what a schedule takes besides the warm-up and the number of steps."""

    min_lr_rate: float | None = Field(None, ge=0, le=1, description="Floor of the cosine as a share of the peak.")
    min_lr: float | None = Field(None, ge=0, description="Floor of the cosine as a learning rate.")
    warmup_lr_rate: float | None = Field(
        None, ge=0, le=1, description="Where the warm-up begins, as a share of the peak."
    )
    num_cycles: float | None = Field(None, gt=0, description="Waves of the cosine; whole for cosine_with_restarts.")
    lr_end: float | None = Field(None, ge=0, description="Where polynomial ends, as a learning rate.")
    power: float | None = Field(None, gt=0, description="Power of polynomial.")
    timescale: int | None = Field(None, ge=1, description="Steps that inverse_sqrt counts in. Default: the warm-up's.")
    num_decay_steps: int | None = Field(None, ge=0, description="Steps of the decay at the end.")
    num_stable_steps: int | None = Field(None, ge=0, description="Steps between warm-up and decay. Default: the rest.")
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
"""Schedules of transformers that follow from the number of the step, and what each takes."""

_FOLLOWS_A_METRIC = ("reduce_lr_on_plateau", "greedy")


class SchedulerConfig(Section):
    """`scheduler`: the learning rate over optimizer steps."""

    type: Literal["huggingface"] = Field("huggingface", description="Whose names for schedules are used.")
    name: str = Field("cosine", description=f"Shape of the schedule: {', '.join(SCHEDULES)}.")
    warmup_ratio: float = Field(
        default_factory=lambda section: 0.0 if section.get("name") == "constant" else DEFAULT_WARMUP_RATIO,
        ge=0,
        le=1,
        description="Warm-up as a share of all optimizer steps. Default: 0.05, or 0 for the schedule `constant`.",
    )
    warmup_steps: int | None = Field(
        None,
        ge=0,
        validation_alias=AliasChoices("warmup_steps", "num_warmup_steps"),
        description="Warm-up in optimizer steps, instead of warmup_ratio.",
    )
    scheduler_specific_kwargs: SchedulerArgs = Field(SchedulerArgs(), description="What the schedule takes.")

    @field_validator("name")
    @classmethod
    def _known_schedule(cls, value: str) -> str:
        if value in _FOLLOWS_A_METRIC:
            raise ValueError(f"{value} follows a metric, not the step; choose one of {', '.join(SCHEDULES)}")
        if value not in SCHEDULES:
            raise ValueError(f"no such schedule: {value}{closest(value, list(SCHEDULES))} ({', '.join(SCHEDULES)})")
        return value

    @model_validator(mode="after")
    def _arguments_belong_to_the_schedule(self) -> SchedulerConfig:
        given = self.scheduler_specific_kwargs.model_dump(exclude_none=True)
        taken = SCHEDULES[self.name]
        if foreign := sorted(given.keys() - taken):
            has = f"it takes {', '.join(sorted(taken))}" if taken else "it takes none"
            raise ValueError(f"{foreign[0]} has no meaning for the schedule {self.name}: {has}")
        floors = given.keys() & {"min_lr", "min_lr_rate"}
        if "min_lr" in taken and len(floors) != 1:
            raise ValueError(f"{self.name} needs one of min_lr and min_lr_rate in scheduler_specific_kwargs")
        if self.name == "warmup_stable_decay" and "num_decay_steps" not in given:
            raise ValueError("warmup_stable_decay needs num_decay_steps in scheduler_specific_kwargs")
        if self.name == "cosine_with_restarts" and given.get("num_cycles", 1) % 1:
            raise ValueError("num_cycles of cosine_with_restarts is a whole number")
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
        description="huggingface: weights and tokenizer, to load and serve. deepspeed: everything a resume needs.",
    )
    save_every_n_steps: int | None = Field(None, ge=1, description="Optimizer steps between two saves.")
    save_every_n_epochs: int | None = Field(None, ge=1, description="Passes over the rows between two saves.")
    save_end_of_training: bool = Field(True, description="Save after the last step.")
    output_dir: Place | None = Field(
        None, description="For huggingface: also put the weights here, into `<experiment>-<version>/step-N`."
    )
    keep: int = Field(2, ge=1, description="How many of the newest that the run has saved are kept.")

    @model_validator(mode="after")
    def _saves_something(self) -> CheckpointConfig:
        if self.type == "deepspeed" and self.output_dir:
            raise ValueError("`type: deepspeed` keeps its states in the run's own folder; leave output_dir out")
        if not (self.save_end_of_training or self.save_every_n_steps or self.save_every_n_epochs):
            raise ValueError(
                "an entry with none of save_every_n_steps, save_every_n_epochs and save_end_of_training saves nothing"
            )
        if self.type == "huggingface" and not self.save_end_of_training and not self.output_dir:
            raise ValueError(
                "the trained model is always kept: give output_dir for weights of steps in between, or leave "
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
    """One experiment tracker, beside the JSON lines that are always written.

    What it writes on this machine (TensorBoard's event files, wandb's runs) is kept in the checkpoint's `trackers`.
    """

    enable: bool = Field(True, description="Send metrics there.")
    project: FolderName = Field("fim", description="Project that the run is filed under.")
    name: FolderName | None = Field(None, description="Name of the run. Default: the experiment's.")


class WandbConfig(TrackerConfig):
    """`wandb`: Weights & Biases."""

    entity: str | None = Field(None, description="Team or user that owns the project. Default: the account's own.")


class LoggerConfig(Section):
    """`logger`: what training processes write beside their metrics."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("WARNING", description="Lowest level that is written.")
    output_dir: Place | None = Field(
        None, description="Folder for the logs: `<experiment>-<version>/rank-N.log`. Default: the run's own folder."
    )
    print_output_ranks: list[int] | Literal["all"] = Field(
        "all", description="Ranks whose log also reaches the console and the logs of the Dagster run."
    )
