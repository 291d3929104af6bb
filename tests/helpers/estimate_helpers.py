"""Experiments and machines of tests of memory estimates."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import OPTIONS

from fim_core.config import Experiment
from fim_core.training.estimate.machine import Machine

CPU = Machine(torch.device("cpu"), memory=2**34, overhead=0, overhead_source="none", name="a CPU", flops=None)


def gpu_of(memory: int) -> Machine:
    """A GPU with so much memory, which holds only tensors."""
    return Machine(torch.device("cuda"), memory, 0, "none", "a GPU", flops=1e15, capability=(9, 0))


def experiment_of(model_type: str, layers: int = 3, **options: Any) -> Experiment:
    """An experiment with a tiny model from scratch; windows repeat over its layers."""
    network = {
        **OPTIONS[model_type],
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    if "layer_types" in network:
        network["layer_types"] = (network["layer_types"] * layers)[:layers]
    return Experiment.model_validate(
        {
            "model": {"config": network, "tokenizer": {"vocab_size": 600}, "dtype": "fp32"},
            "data": {"sources": [{"type": "demo"}]},
            **options,
        }
    )
