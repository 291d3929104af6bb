"""The check before training on a GPU that the run can fit."""

from __future__ import annotations

import logging

from fim_core.errors import FimError
from fim_core.tokenization import load_rows
from fim_core.training.distributed import Ranks
from fim_core.training.estimate.estimate import Estimator
from fim_core.training.estimate.machine import Machine
from fim_core.training.estimate.simulation import CannotSimulate
from fim_core.training.job import Job

logger = logging.getLogger(__name__)


def require_fit(job: Job, ranks: Ranks) -> None:
    """Require that the largest pack of a job can fit on the first rank's GPU; nothing is checked on a CPU.

    With Liger's kernels, which need less memory than the estimate says, a run is only warned.

    Raises:
        FimError: it cannot fit.
    """
    if not ranks.is_first or ranks.device.type != "cuda":
        return
    rows = load_rows(job.dataset, "train")
    if not len(rows):
        return
    estimator = Estimator(job.experiment, Machine.of_device(ranks.device), ranks.world_size, job.tokenizer)
    try:
        estimator.require_fit(estimator.workload_of(rows))
    except CannotSimulate as error:
        logger.warning("%s", error)
    except FimError as error:
        if job.experiment.model.type != "liger":
            raise
        logger.warning("Without Liger: %s", error)
