"""Floating-point operations of training, for balancing packs and for model-FLOPs utilization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from fim_core.modeling.partition import whole_shape
from fim_core.modeling.support import causal_model, head_size
from fim_core.packing import Layout
from fim_core.packing.cost import Cost

if TYPE_CHECKING:
    from peft import PeftModel


def training_cost(model: PreTrainedModel | PeftModel) -> Cost:
    """Operations of one forward and backward pass per token, per query-key pair and per target.

    A matrix entry costs 2 operations forward and 2 for the gradient of each of its operands; a query-key pair costs 4
    per head dimension forward, twice that backward (Chowdhery et al., 2022, "PaLM", appendix B). Recomputed activations
    do not count. Pairs beyond a sliding window are counted as if they were attended to.
    """
    base = causal_model(model)
    config = base.config.get_text_config()
    head = base.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    linear = [module for module in base.modules() if isinstance(module, nn.Linear) and module is not head]
    token = sum(_operations(module.weight, module.in_features * module.out_features) for module in linear)
    experts = [parameter for parameter in base.parameters() if len(whole_shape(parameter)) == 3]
    if experts:
        share = config.num_experts_per_tok / max(whole_shape(parameter)[0] for parameter in experts)
        token += sum(_operations(parameter, int(whole_shape(parameter).numel() * share)) for parameter in experts)
    return Cost(
        token=float(token),
        pair=12.0 * config.num_hidden_layers * config.num_attention_heads * head_size(config),
        target=float(_operations(head.weight, head.in_features * head.out_features)),
    )


def attended_pairs(layout: Layout) -> int:
    """Query-key pairs of a packed sequence."""
    lengths = layout.lengths.astype(int)
    return int((lengths * layout.depths + lengths * (lengths + 1) // 2).sum())


def _operations(parameter: torch.Tensor, entries: int) -> int:
    return (6 if parameter.requires_grad else 4) * entries
