"""Wait policy of OpenMP's threads."""

from __future__ import annotations

import os
import subprocess
import sys


def test_threads_sleep_while_they_wait() -> None:
    """OpenMP prints its settings when torch loads it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    loaded = subprocess.run(
        [sys.executable, "-c", "import fim_core, torch"],
        env=environment | {"OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in loaded.stderr
