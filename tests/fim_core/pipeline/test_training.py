"""What decides the version of a checkpoint, and what does not."""

from __future__ import annotations

from typing import Any

from tiny_pipeline import TINY

from fim_core.config import Experiment
from fim_core.pipeline.training import trained_checkpoint


def options(**launcher: Any) -> dict[str, Any]:
    return trained_checkpoint.options(Experiment.model_validate({**TINY, "launcher": launcher}))


def test_where_ranks_run_does_not_count_but_how_many_does() -> None:
    ray = {"type": "ray", "address": "http://head:8265", "num_gpus": 2}
    kubernetes = {"type": "kubernetes", "image": "fim", "volume_claim": "c", "mount_path": "/data"}
    hostfile = {"type": "hostfile", "hostfile": "hosts"}
    local = options(num_processes=2)
    assert [options(**place, num_processes=2) for place in (ray, kubernetes, hostfile)] == [local] * 3
    assert options(num_processes=1) != local
