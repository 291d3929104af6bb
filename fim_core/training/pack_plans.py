"""Pack plans of all epochs, computed once by rank 0 and stored as Parquet files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fim_core.atomic import replacing
from fim_core.errors import DamagedFile
from fim_core.packing import PackPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackPlans:
    """The folder of a run's pack plans: `epoch-N.parquet` for training, `eval.parquet` for held-out rows."""

    folder: Path

    def make(self, name: str, plan: Callable[[], PackPlan], *, ranks: int) -> None:
        """Compute and store a plan, unless an earlier attempt stored an undamaged one for the same number of ranks."""
        path = self._path(name)
        try:
            if path.exists() and PackPlan.read(path).ranks == ranks:
                return
        except DamagedFile as error:
            logger.warning("%s The packs are planned again.", error)
        with replacing(path) as scratch:
            plan().write(scratch)

    def read(self, name: str) -> PackPlan:
        """The plan that is stored under a name."""
        return _read(self._path(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"


@lru_cache(maxsize=2)
def _read(path: Path) -> PackPlan:
    return PackPlan.read(path)
