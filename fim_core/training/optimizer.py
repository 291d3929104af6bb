"""Optimizer: AdamW with weight decay on matrices only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fim_core.config import Experiment
from fim_core.config.deepspeed import offloads_optimizer
from fim_core.locks import locked

_BUILDS = "fim_assets"
"""Folder in torch's folder for extensions, in which this package compiles."""


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices, which decay, and norms and biases, which do not."""
    trainable = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    decayed = [param for name, param in trainable if param.ndim >= 2 and not name.endswith("bias")]
    others = [param for name, param in trainable if param.ndim < 2 or name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(experiment: Experiment, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW on the model's device, or DeepSpeed's CPU Adam, which is compiled on first use, if its state is offloaded."""
    config = experiment.optimizer
    assert config.lr is not None, "an experiment fills in its default"
    groups = decay_groups(model, config.weight_decay)
    if offloads_optimizer(experiment.deepspeed):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        compile_cpu_adam()
        return DeepSpeedCPUAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps, adamw_mode=True)
    # Fused: one pass over each parameter, without temporary copies.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def compile_cpu_adam() -> None:
    """Compile DeepSpeed's CPU Adam, unless this machine has done so; takes about a minute.

    torch marks a compilation in progress by a file. If the process is killed the file stays, and others would wait for
    it forever. Here all ranks compile in a separate folder, under a lock that the kernel frees, so a mark that is found
    while the lock is held is stale.
    """
    from deepspeed.ops.op_builder import CPUAdamBuilder
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    if root.name != _BUILDS:
        root = root / _BUILDS
    root.mkdir(parents=True, exist_ok=True)
    # DeepSpeed loads the operator again when the optimizer is built, and has to find it in the same folder.
    os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
    with locked(root / "compiling"):
        for mark in (*root.glob(f"{CPUAdamBuilder.NAME}/lock"), *root.glob(f"*/{CPUAdamBuilder.NAME}/lock")):
            mark.unlink()
        CPUAdamBuilder().load()
