"""Launching of training runs: start the ranks, follow them, and end them in any case."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.launchers.base import StartRanks, start_ranks
from fim_core.launchers.folder_lock import lock_run_folder
from fim_core.launchers.monitor import OnEvent, follow
from fim_core.launchers.progress_bar import progress_bar
from fim_core.training.job import Job, TrainResult, Work


def launch(
    experiment: Experiment,
    dataset: Path,
    tokenizer: Path,
    work: Path,
    *,
    on_event: OnEvent | None = None,
    provenance: Mapping[str, Any] | None = None,
    start: StartRanks | None = None,
) -> TrainResult:
    """Train; returns when the model has been written to `work/model`.

    No rank survives an error, Ctrl-C, or a SIGKILL of this process: ranks on this machine are in a `ProcessGroup` that
    dies with it, ranks on other machines end when their lease is no longer renewed. A second launch in the same folder
    resumes from the newest undamaged state.

    Args:
        dataset: folder of tokenize_prompts, with the splits train and eval.
        tokenizer: folder of the tokenizer that the rows were tokenized with.
        work: the run's folder, which is kept between attempts.
        on_event: receives each event of the run as it happens, from the `start` of this attempt.
        provenance: versions and digests of what the model is made from, for its card.
        start: starts the ranks. Default: `start_ranks`, by the experiment's `launcher`.

    Raises:
        FimError: a mistake of the user that a rank found; or `work` holds something else than a training run.
        TrainingFailed: a rank failed, was killed, hung, or ran out of time.
    """
    require_work_folder(work)
    with lock_run_folder(Work(work.absolute()).lock) as lock:
        job = prepare_job(experiment, dataset, tokenizer, work, provenance)
        with progress_bar(experiment.name) as show:

            def pass_on(event: dict[str, Any]) -> None:
                show(event)
                if on_event is not None:
                    on_event(event)

            follow(job, (start or start_ranks)(job, lock), pass_on)
        return TrainResult.read(job.work.result)


def require_work_folder(folder: Path) -> None:
    """Require that a folder is empty, missing, or that of a training run.

    Raises:
        FimError: it holds something else.
    """
    work = Work(folder)
    holds = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    # A kill may have left a half-written job file.
    foreign = [name for name in holds if name != work.lock.name and not name.startswith(f".{work.job.name}-")]
    if foreign and not work.job.is_file():
        raise FimError(
            f"{folder} holds other files than those of a training run ({work.job.name} is missing). Name an empty folder."
        )


def prepare_job(
    experiment: Experiment, dataset: Path, tokenizer: Path, work: Path, provenance: Mapping[str, Any] | None = None
) -> Job:
    """Write the job file of a new attempt."""
    job = Job(
        experiment=experiment,
        dataset=dataset.absolute(),
        tokenizer=tokenizer.absolute(),
        work=Work(work.absolute()),
        attempt=secrets.token_hex(4),
        provenance=provenance or {},
    )
    job.write()
    job.work.result.unlink(missing_ok=True)
    return job
