"""Start the ranks of a training run, follow it, and leave nothing behind."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.errors import FimError
from fim_core.launchers import hostfile, local, ray  # noqa: F401 - each registers its launcher
from fim_core.launchers.base import Start, start_ranks
from fim_core.launchers.folder_lock import exclusive
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
    start: Start | None = None,
) -> TrainResult:
    """Train, and return when the model lies in `work/model`.

    However this function is left (an error, Ctrl-C, SIGKILL of this process), no rank survives: those of this machine
    are in a process group that dies with it, those of other machines end when nobody follows them. A second launch in
    the same folder resumes from the newest whole state.

    Args:
        dataset: folder of tokenize_prompts, with the splits train and eval.
        tokenizer: folder of the tokenizer that the rows were made with.
        work: the run's folder; kept between attempts.
        on_event: gets each event of the run as it happens, from this attempt's `start` on.
        provenance: what the model is made of (versions, digests), for its card.
        start: starts the ranks where the experiment's `launcher` says. Default: `start_ranks`.

    Raises:
        FimError: the mistake that a rank found, in its words; or `work` holds something else.
        TrainingFailed: a rank broke down, was killed, hung, or ran out of time.
    """
    require_work_folder(work)
    with exclusive(Work(work.absolute()).lock) as lock:
        job = prepare_job(experiment, dataset, tokenizer, work, provenance)
        with progress_bar(experiment.name) as show:

            def pass_on(event: dict[str, Any]) -> None:
                show(event)
                if on_event is not None:
                    on_event(event)

            ranks = (start or start_ranks)(job, lock)
            try:
                follow(job, ranks, pass_on)
            finally:
                ranks.end()
        return TrainResult.read(job.work.result)


def require_work_folder(folder: Path) -> None:
    """Go on if a folder is free, or that of a training run.

    Raises:
        FimError: it holds something else.
    """
    work = Work(folder)
    holds = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    # A kill may have left a job file half written.
    foreign = [name for name in holds if name != work.lock.name and not name.startswith(f".{work.job.name}-")]
    if foreign and not work.job.is_file():
        raise FimError(
            f"{folder} holds files, but no training run: {work.job.name} is missing. Give training a folder of its own."
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
