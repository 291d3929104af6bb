"""The agent of a host, with ranks that do not import torch."""

from __future__ import annotations

import sys
from pathlib import Path

from fim_core.launchers import host_agent, local
from fim_core.training import lease

if __name__ == "__main__":
    light_rank = str(Path(__file__).with_name("light_rank.py"))
    local.rank_command = lambda job: [sys.executable, light_rank, str(job)]
    lease.CHECK_SECONDS = 0.1
    sys.exit(host_agent.main())
