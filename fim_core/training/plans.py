"""Pack plans of all epochs, made once by rank 0 and kept as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq

from fim_core.files import replacing
from fim_core.packing import PackPlan


@dataclass(frozen=True)
class Plans:
    """The folder of a run's pack plans: `epoch-N.parquet` for training, `eval.parquet` for held-out rows."""

    folder: Path

    def make(self, name: str, plan: Callable[[], PackPlan]) -> None:
        """Store a plan under a name, unless an earlier attempt has done so."""
        path = self._path(name)
        if path.exists():
            return
        with replacing(path) as scratch:
            plan().write(scratch)

    def packs(self, name: str) -> int:
        """Packs of a stored plan, without reading it."""
        return int(pq.read_metadata(self._path(name)).num_rows)

    def read(self, name: str) -> PackPlan:
        """A stored plan."""
        return _read(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"


@lru_cache(maxsize=2)
def _read(path: Path) -> PackPlan:
    return PackPlan.read(path)
