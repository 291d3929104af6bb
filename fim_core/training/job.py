"""What passes between a launcher and the ranks of a training run: the job, its folder, its result, its errors.

Everything here is light, so that a front door can start a run without importing torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.config.launchers import LauncherSection
from fim_core.errors import FimError
from fim_core.integrity import read_sealed, write_sealed

RENDEZVOUS_FILE = "FIM_RENDEZVOUS_FILE"
"""Environment variable: the file through which the ranks of one machine meet."""


class TrainingFailed(FimError):
    """A rank broke down. The message ends with the last lines of what it wrote, its traceback included."""


@dataclass(frozen=True)
class Work:
    """The files of one training run. On several machines this folder is shared between them."""

    root: Path

    @property
    def job(self) -> Path:
        """What the ranks read first."""
        return self.root / "job.json"

    @property
    def lock(self) -> Path:
        """Locked by the launcher, and by ranks on this machine."""
        return self.root / "lock"

    @property
    def ranks_lock(self) -> Path:
        """Locked by the launcher on a cluster's machine, and by its ranks."""
        return self.root / "ranks.lock"

    @property
    def metrics(self) -> Path:
        """Events of the run, one JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def heartbeat(self) -> Path:
        """Touched at every sign of life of rank 0."""
        return self.root / "progress"

    @property
    def states(self) -> Path:
        """Resumable states, one folder `step-N` each."""
        return self.root / "state"

    @property
    def packs(self) -> Path:
        """Pack plans, one Parquet file an epoch."""
        return self.root / "packs"

    @property
    def model(self) -> Path:
        """The trained model, in the format of transformers."""
        return self.root / "model"

    @property
    def logs(self) -> Path:
        """What each rank wrote to its standard output and error, unless the experiment names another folder."""
        return self.root / "logs"

    @property
    def result(self) -> Path:
        """The TrainResult of the last run that ended well."""
        return self.root / "result.json"

    @property
    def trackers(self) -> Path:
        """What trackers write on this machine: TensorBoard's event files, wandb's runs."""
        return self.root / "trackers"

    def failure(self, attempt: str, rank: int) -> Path:
        """Why a rank of an attempt ended, written by the rank itself."""
        return self.root / "failures" / f"{attempt}-rank-{rank}.json"

    def launcher_failure(self, attempt: str) -> Path:
        """Why an attempt ended on a machine of a cluster, written by the launcher there."""
        return self.root / "failures" / f"{attempt}-launcher.json"

    @property
    def lease(self) -> Path:
        """Renewed by whoever follows ranks on other machines."""
        return self.root / "lease"

    def rendezvous(self, attempt: str) -> Path:
        """The file through which the ranks of one machine find each other."""
        return self.root / f"rendezvous-{attempt}"


@dataclass(frozen=True)
class Job:
    """One attempt at a training run.

    Attributes:
        dataset: folder of tokenize_prompts, with the splits train and eval.
        tokenizer: folder of the tokenizer, with the FIM tokens added.
        work: the run's folder; an earlier attempt's states in it are resumed from.
        attempt: name of this attempt; tells its events from those of earlier ones.
        provenance: what the model was made of (versions, digests), for its card.
    """

    experiment: Experiment
    dataset: Path
    tokenizer: Path
    work: Work
    attempt: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_name(self) -> str:
        """Name of the run's own folder in places that the experiment names: `<experiment>-<version>`."""
        return f"{self.experiment.name}-{self.work.root.name}"

    @property
    def log_folder(self) -> Path:
        """Where ranks write their logs."""
        chosen = self.experiment.logger.output_dir
        return Path(chosen).absolute() / self.run_name if chosen else self.work.logs

    def write(self) -> Path:
        """Store the job where the ranks find it; returns the path.

        Of the launcher's options it holds those that all launchers share: a rank need not know the launcher's type,
        whose module may not be installed on its machine.
        """
        experiment = self.experiment.model_dump(mode="json")
        shared = [name for name in LauncherSection.model_fields if name != "type"]
        content = {
            "experiment": experiment | {"launcher": {name: experiment["launcher"][name] for name in shared}},
            "dataset": str(self.dataset),
            "tokenizer": str(self.tokenizer),
            "work": str(self.work.root),
            "attempt": self.attempt,
            "provenance": dict(self.provenance),
        }
        write_sealed(self.work.job, content)
        return self.work.job

    @classmethod
    def read(cls, path: Path) -> Job:
        """Read what `write` stored.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not what was stored.
        """
        content = read_sealed(path)
        return cls(
            experiment=Experiment.model_validate(content["experiment"]),
            dataset=Path(content["dataset"]),
            tokenizer=Path(content["tokenizer"]),
            work=Work(Path(content["work"])),
            attempt=content["attempt"],
            provenance=content["provenance"],
        )


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Attributes:
        model: folder of the trained model.
        steps: optimizer steps from the very first to the last, over all attempts.
        epochs: passes over the data that were begun.
        loss_before: held-out loss of the untrained model in nats, per token or per row as the experiment weighs;
            None without held-out rows. loss_after: of the trained one.
        train_loss_last: loss of the last optimizer step.
        batch_rows: rows of an optimizer step; the last of an epoch may have had fewer.
        rows: rows trained on, counted once an epoch. packs: sequences that they were computed in. tokens: their tokens.
            trained_tokens: those that were predicted. distinct_tokens: tokens that went through the model, shared
            prefixes counted once.
        empty_steps: optimizer steps that had no position to train on.
        seconds: time spent in training steps, over all attempts.
        world_size: ranks of the last attempt.
        resumed_from: the step that the last attempt began at, or None when it began at the start.
        packing: the strategy that was used.
        warmup_steps: optimizer steps of the warm-up, as the schedule of the whole run has them.
        notices: what was replaced or left out, and why.
    """

    model: Path
    steps: int
    epochs: int
    loss_before: float | None
    loss_after: float | None
    train_loss_last: float | None
    batch_rows: int
    rows: int
    packs: int
    tokens: int
    trained_tokens: int
    distinct_tokens: int
    empty_steps: int
    seconds: float
    world_size: int
    resumed_from: int | None
    packing: str
    warmup_steps: int
    notices: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Store as JSON."""
        write_sealed(path, asdict(self) | {"model": str(self.model.absolute())})

    @classmethod
    def read(cls, path: Path) -> TrainResult:
        """Read what `write` stored.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not what was stored.
        """
        content = read_sealed(path)
        return cls(**content | {"model": Path(content["model"]), "notices": tuple(content["notices"])})
