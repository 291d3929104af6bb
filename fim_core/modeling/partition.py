"""Weights that ZeRO stage 3 partitions among ranks: read so from the start, and made whole for a moment.

DeepSpeed is imported only where weights are partitioned, as serving and evaluation need none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def partitioned_loading(config: Mapping[str, Any] | None) -> Iterator[None]:
    """Within it, transformers keeps only this rank's part of each weight that `from_pretrained` reads.

    Args:
        config: DeepSpeed's configuration, of stage 3; None changes nothing.
    """
    if config is None:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # transformers looks at a weak reference to this object, which must therefore have a name.
    announced = HfDeepSpeedConfig(dict(config))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del announced


@contextmanager
def whole_weights(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within it partitioned weights are whole on every rank; what rank 0 changes in them stays."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(list(weights), modifier_rank=0):
        yield


def whole_shape(weight: torch.Tensor) -> torch.Size:
    """Shape of a weight, of all its parts together where it is partitioned."""
    return getattr(weight, "ds_shape", weight.shape)
