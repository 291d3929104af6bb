"""The program of a cluster's machine, with ranks that do not import torch and a lease of $LEASE seconds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fim_core.launchers import local, remote
from fim_core.training import lease

if __name__ == "__main__":
    light_rank = str(Path(__file__).with_name("light_rank.py"))
    local.rank_command = lambda job: [sys.executable, light_rank, str(job)]
    lease.LEASE_SECONDS = float(os.environ.get("LEASE", "60"))
    lease.CHECK_SECONDS = 0.1
    sys.exit(remote.main())
