"""Weights that ZeRO stage 3 partitions among ranks: partitioned loading, and temporary gathering.

DeepSpeed is imported only if weights are partitioned, as serving and evaluation do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def partitioned_loading(config: Mapping[str, Any] | None) -> Iterator[None]:
    """Make `from_pretrained` of transformers keep only this rank's part of each weight, within the block.

    Args:
        config: DeepSpeed's configuration of stage 3; None has no effect.
    """
    if config is None:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # transformers holds only a weak reference to this object, so a variable has to keep it alive.
    announced = HfDeepSpeedConfig(dict(config))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del announced


@contextmanager
def whole_weights(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """Gather partitioned weights on every rank, within the block; changes by rank 0 are kept."""
    if not any(hasattr(weight, "ds_id") for weight in weights):
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters(list(weights), modifier_rank=0):
        yield


def whole_shape(weight: torch.Tensor) -> torch.Size:
    """Shape of a weight, that of all parts together if it is partitioned."""
    return getattr(weight, "ds_shape", weight.shape)


def is_partitioned(module: nn.Module, *, recurse: bool = True) -> bool:
    """Whether a rank holds only a part of any weight of this module, and has to gather it to compute with it.

    Args:
        recurse: include the weights of submodules.
    """
    # DeepSpeed sets this attribute in stage 3; it is true for small weights (stage3_param_persistence_threshold).
    return any(not getattr(weight, "ds_persist", True) for weight in module.parameters(recurse))
