"""Program of each rank of a training run: `python -m fim_core.training.worker --job work/job.json`.

The launcher sets RANK, LOCAL_RANK, WORLD_SIZE, and the file through which the ranks meet.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import shutil
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from fim_core.errors import FimError, is_disk_full
from fim_core.process_group import die_with_parent
from fim_core.quick_imports import quick_imports
from fim_core.training.failures import DISK_FULL, record_failure
from fim_core.training.job import Job

MIN_FREE_BYTES = 2**20
"""A disk with less free space than this is considered full."""


def main() -> int:
    """Train as one rank. Returns the exit code: 0, 2 for a mistake of the user, DISK_FULL, or 1 for any other error."""
    die_with_parent()
    # When a run hangs, the launcher requests the stack of every thread, which goes to the log.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        job = Job.read(arguments.job)
    except (OSError, FimError) as error:
        print(error, file=sys.stderr)
        return 2
    rank = int(os.environ["RANK"])
    try:
        train(job)
    except BaseException as error:
        full = ran_out_of_space(error, job)
        user_error = isinstance(error, FimError)
        # On a full disk no failure can be recorded, so the exit code reports it.
        with suppress(OSError):
            if not full:
                record_failure(job, rank, error)
        logging.getLogger(__name__).error("rank %d: %s", rank, error, exc_info=not user_error)
        return DISK_FULL if full else 2 if user_error else 1
    return 0


def ran_out_of_space(error: BaseException, job: Job) -> bool:
    """Whether the error is due to a full disk; judged by free space too, as torch does not say why a write failed."""
    if isinstance(error, FimError):
        return False
    return is_disk_full(error) or shutil.disk_usage(job.work.root).free < MIN_FREE_BYTES


def train(job: Job) -> None:
    """Join the other ranks, prepare the run, and train to the end."""
    # DeepSpeed loads states with pickle; this makes torch refuse all but tensors and plain values.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    with quick_imports():
        configure_logging(job.experiment.logger.level)
        from fim_core.training.distributed import join_ranks, leave_ranks
        from fim_core.training.estimate.fit import require_fit
        from fim_core.training.loop import fit
        from fim_core.training.run import prepare_run

    ranks = join_ranks()
    require_fit(job, ranks)
    fit(prepare_run(job, ranks))
    leave_ranks()


def configure_logging(level: str) -> None:
    """Send this level and above to standard error, which is the rank's log file; set libraries to the same level."""
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # DeepSpeed calls collectives by names that torch has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import transformers
    from deepspeed.utils import logger as deepspeed_logger

    transformers.utils.logging.set_verbosity(getattr(logging, level))
    deepspeed_logger.setLevel(level)
    for handler in deepspeed_logger.handlers:
        handler.setLevel(level)


if __name__ == "__main__":
    code = main()
    # Everything is written and the process group is closed; a regular exit of the interpreter would only take seconds.
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
