"""Training jobs as launchers and ranks exchange them: the job, its folder, its result and its error.

Nothing here imports torch, so that the command line and Dagster can start a run quickly.
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
"""Environment variable: the file through which the ranks meet."""
RENDEZVOUS_HOST = "FIM_RENDEZVOUS_HOST"
"""Environment variable of ranks on several machines: the name of the machine of rank 0."""


class TrainingFailed(FimError):
    """A rank failed. The message ends with the last lines of its log or its traceback."""


@dataclass(frozen=True)
class Work:
    """The folder of a training run, shared between its machines."""

    root: Path

    @property
    def job(self) -> Path:
        """The job, which the ranks read."""
        return self.root / "job.json"

    @property
    def lock(self) -> Path:
        """Locked by the launcher, and by ranks on this machine."""
        return self.root / "lock"

    def ranks_lock(self, node: int = 0) -> Path:
        """Locked by the launcher on a cluster's machine, by its index, and by its ranks."""
        return self.root / f"ranks-{node}.lock"

    @property
    def metrics(self) -> Path:
        """Events of the run, one JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def heartbeat(self) -> Path:
        """Touched by rank 0 as it makes progress."""
        return self.root / "progress"

    @property
    def states(self) -> Path:
        """Resumable states, in folders `step-N`."""
        return self.root / "state"

    @property
    def packs(self) -> Path:
        """Pack plans, one Parquet file per epoch."""
        return self.root / "packs"

    @property
    def model(self) -> Path:
        """The trained model, in the format of transformers."""
        return self.root / "model"

    @property
    def logs(self) -> Path:
        """Standard output and error of each rank, unless the experiment names another folder."""
        return self.root / "logs"

    @property
    def result(self) -> Path:
        """The TrainResult of the last attempt that succeeded."""
        return self.root / "result.json"

    @property
    def trackers(self) -> Path:
        """Files of trackers: TensorBoard's events, wandb's runs."""
        return self.root / "trackers"

    def failure(self, attempt: str, rank: int) -> Path:
        """Why a rank of an attempt failed, written by the rank itself."""
        return self.root / "failures" / f"{attempt}-rank-{rank}.json"

    def launcher_failure(self, attempt: str, node: int | str = 0) -> Path:
        """Why an attempt failed on a machine of a cluster, by its index, written by the launcher there."""
        return self.root / "failures" / f"{attempt}-launcher-{node}.json"

    @property
    def lease(self) -> Path:
        """Lease of ranks on other machines, renewed by the process that follows them."""
        return self.root / "lease"

    def rendezvous(self, attempt: str) -> Path:
        """The file through which the ranks meet."""
        return self.root / f"rendezvous-{attempt}"

    def sign_of_life(self, attempt: str, host: int) -> Path:
        """Rewritten by the agent of a host, by its index, as long as it runs, and removed when its ranks are gone."""
        return self.root / "hosts" / f"{attempt}-{host}"

    def host_lock(self, host: int) -> Path:
        """Locked by the agent of a host, by its index, and by its ranks."""
        return self.root / "hosts" / f"lock-{host}"

    def host_report(self, attempt: str, host: int) -> Path:
        """How the ranks of a host have ended, written by its agent."""
        return self.root / "hosts" / f"{attempt}-{host}.json"

    @property
    def slurm_job(self) -> Path:
        """Name of the Slurm job of the last attempt, as long as it may be queued or running."""
        return self.root / "slurm-job"


@dataclass(frozen=True)
class Job:
    """One attempt at a training run.

    Attributes:
        dataset: folder of tokenize_prompts, with the splits train and eval.
        tokenizer: folder of the tokenizer, with the FIM tokens added.
        work: the run's folder; training resumes from the states of earlier attempts in it.
        attempt: id of this attempt, which distinguishes its events from those of earlier ones.
        provenance: versions and digests of what the model is made from, for its card.
    """

    experiment: Experiment
    dataset: Path
    tokenizer: Path
    work: Work
    attempt: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_name(self) -> str:
        """Name of the run's folder inside folders that the experiment names: `<experiment>-<version>`."""
        return f"{self.experiment.name}-{self.work.root.name}"

    @property
    def log_folder(self) -> Path:
        """Folder of the ranks' logs."""
        chosen = self.experiment.logger.output_dir
        return Path(chosen).absolute() / self.run_name if chosen else self.work.logs

    def write(self) -> Path:
        """Write the job file; returns its path.

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
        """Read what `write` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not what was written.
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
    """Result of a training run.

    Attributes:
        model: folder of the trained model.
        steps: optimizer steps over all attempts.
        epochs: passes over the data, the last one possibly incomplete.
        loss_before: held-out loss of the untrained model in nats, per token or per row as the experiment weighs;
            None without held-out rows.
        loss_after: that of the trained model.
        train_loss_last: loss of the last optimizer step.
        batch_rows: rows of an optimizer step; the last of an epoch may have had fewer.
        rows: rows trained on, counted once per epoch.
        packs: packed sequences that they were computed in.
        tokens: tokens of the rows.
        trained_tokens: tokens that were predicted.
        distinct_tokens: tokens that the model computed; a shared prefix counts once.
        empty_steps: optimizer steps without a position to train on.
        seconds: time spent in training steps, over all attempts.
        world_size: ranks of the last attempt.
        resumed_from: the step from which the last attempt resumed; None if it began at the start.
        packing: the packing strategy that was used.
        warmup_steps: optimizer steps of the warm-up.
        notices: warnings, such as options that were replaced, and why.
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
        """Write the result as JSON."""
        write_sealed(path, asdict(self) | {"model": str(self.model.absolute())})

    @classmethod
    def read(cls, path: Path) -> TrainResult:
        """Read what `write` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedFile: it is not what was written.
        """
        content = read_sealed(path)
        return cls(**content | {"model": Path(content["model"]), "notices": tuple(content["notices"])})
