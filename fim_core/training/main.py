"""What each rank of a training run executes: `python -m fim_core.training.main --job work/job.json`.

RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT come from whoever starts the ranks.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

from fim_core.errors import FimError
from fim_core.training.failures import record_failure
from fim_core.training.job import Job
from fim_core.training.processes import die_with_parent


def main() -> int:
    """Train as one rank. Returns the exit code: 0, 2 for a mistake of the user, 1 for everything else."""
    die_with_parent()
    # Asked for by the launcher when a run hangs: the stack of every thread, into the log.
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    job = Job.read(parser.parse_args().job)
    rank = int(os.environ["RANK"])
    try:
        train(job)
    except FimError as error:
        record_failure(job, rank, error)
        logging.getLogger(__name__).error("%s", error)
        return 2
    except BaseException as error:
        record_failure(job, rank, error)
        logging.getLogger(__name__).exception("rank %d failed", rank)
        return 1
    return 0


def train(job: Job) -> None:
    """Set up this rank and train to the end."""
    # DeepSpeed loads states with pickle; this makes torch refuse all but tensors and plain values.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    configure_logging(job.experiment.logger.level)
    from fim_core.training.distributed import join_ranks, leave_ranks
    from fim_core.training.engine import fit
    from fim_core.training.setup import setup

    fit(setup(job, join_ranks()))
    leave_ranks()


def configure_logging(level: str) -> None:
    """Send this level and above to standard error, which is the rank's log file; quieten chatty libraries to it."""
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    import transformers
    from deepspeed.utils import logger as deepspeed_logger

    transformers.utils.logging.set_verbosity(getattr(logging, level))
    transformers.utils.logging.disable_progress_bar()
    deepspeed_logger.setLevel(level)
    for handler in deepspeed_logger.handlers:
        handler.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
