"""Distribution of the tests over the workers of pytest-xdist."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/e2e/", "tests/fim_core/training/test_ray")
"""Beginnings of the paths of files that share a costly fixture, or a port."""


class ByFile(LoadScopeScheduling):
    """Runs a file on one worker, which so makes its fixtures once; files are started in the order of their paths.

    The marker `xdist_group` has no effect: pytest-xdist 3.8 cannot change the ids of pytest 9.2.
    """

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((beginning for beginning in TOGETHER if file.startswith(beginning)), file)
