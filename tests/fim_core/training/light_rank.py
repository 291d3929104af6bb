"""A rank without torch, started by the real launcher, with the behaviour that $BEHAVIOUR names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fim_core.errors import FimError
from fim_core.process_group import die_with_parent
from fim_core.training.failures import DISK_FULL, record_failure
from fim_core.training.job import Job, TrainResult


def main() -> int:
    die_with_parent()
    job, rank = Job.read(Path(sys.argv[1])), int(os.environ["RANK"])
    with (job.work.root / "pids").open("a") as pids:
        # As ninja does it with compilers, and as a daemon does it with itself.
        for options in ({}, {"process_group": 0}, {"start_new_session": True}):
            grandchild = subprocess.Popen(["sleep", "300"], **options)
            pids.write(f"{grandchild.pid}\n")
        pids.write(f"{os.getpid()}\n")
    print(f"rank {rank} speaks", flush=True)
    behaviour = os.environ["BEHAVIOUR"]
    if rank == 0:
        job.work.heartbeat.touch()
        with job.work.metrics.open("a") as metrics:
            for event in ({"event": "start", "attempt": job.attempt, "total_steps": 2}, {"event": "checkpoint"}):
                metrics.write(json.dumps(event | {"step": 0}) + "\n")
    if behaviour == "disk full":
        return DISK_FULL
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(300)
    try:
        if rank == 1 and behaviour == "breaks":
            raise ZeroDivisionError("nothing to divide by")
        if rank == 1 and behaviour == "user error":
            raise FimError("The rows r-1, r-2 are to blame.")
        if rank == 1 and behaviour == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour in ("breaks", "user error"):
            while not job.work.failure(job.attempt, 1).exists():
                time.sleep(0.01)
            raise ConnectionError("the other rank is gone")
        if behaviour != "ends well":
            time.sleep(300)
    except Exception as error:
        record_failure(job, rank, error)
        return 1
    if rank == 0:
        result = TrainResult(job.work.model, 2, 1, 2.0, 1.0, 1.1, 4, 8, 2, 80, 20, 40, 0, 0.5, 2, None, "flat", 0)
        result.write(job.work.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
