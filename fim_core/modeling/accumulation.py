"""Gradients with an entry for each id of the vocabulary, added to a parameter's `.grad` where they are computed.

Autograd hands a parameter's gradient over as a tensor of the parameter's size, which it then adds to `.grad`. For the
output layer and the embeddings of a large vocabulary that is hundreds of megabytes in each micro-batch, twice where they
are tied, although the embeddings' gradient is zero except for the tokens of the batch.

Here the output layer's backward adds its product to `.grad` itself and hands over a sparse tensor without entries, and
the embeddings hand over a sparse tensor of the batch's tokens. Autograd adds sparse gradients to a dense `.grad` in
place, and runs the parameter's hooks as ever, once in each backward pass (DeepSpeed's, which read `.grad`).
"""

from __future__ import annotations

import torch
from torch import nn

ACCUMULATED_DTYPES = frozenset({torch.float32, torch.float64})
"""Numbers in which it does not matter how many addends a sum is put together from."""


def accumulates_in_place(parameter: torch.Tensor) -> bool:
    """Whether gradients may be added to this parameter's `.grad` directly."""
    return parameter.is_leaf and parameter.requires_grad and parameter.dtype in ACCUMULATED_DTYPES


def make_embedding_gradient_sparse(embedding: nn.Module) -> None:
    """Have embeddings hand over the gradient of the batch's tokens only; `.grad` stays dense.

    Embeddings of another kind than `torch.nn.Embedding`, frozen ones and ones in half precision are left as they are.
    """
    if not isinstance(embedding, nn.Embedding) or not accumulates_in_place(embedding.weight) or embedding.sparse:
        return
    embedding.sparse = True
    weight = embedding.weight

    def start_dense(gradient: torch.Tensor) -> None:
        """Without a `.grad` to add to, autograd would make the sparse tensor the parameter's `.grad`."""
        if gradient.is_sparse and weight.grad is None:
            weight.grad = torch.zeros(gradient.shape, dtype=weight.dtype, device=weight.device)

    weight.register_hook(start_dense)


def add_product(parameter: torch.Tensor, left: torch.Tensor, right: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Add factor * left @ right to a parameter's gradient.

    Args:
        parameter: [rows, columns], one that `accumulates_in_place`.
        left: [rows, n]. right: [n, columns].
        factor: a scalar.

    Returns:
        What a backward function returns as the gradient, so that the parameter's hooks run.
    """
    right = right * factor
    if parameter.grad is None:
        parameter.grad = left @ right
    else:
        parameter.grad.addmm_(left, right)
    return _no_entries(parameter)


def add_scaled(parameter: torch.Tensor, gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Add factor * gradient to a parameter's gradient; `gradient` is overwritten, and may become that gradient.

    Returns:
        As `add_product`.
    """
    gradient *= factor
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient
    return _no_entries(parameter)


def _no_entries(parameter: torch.Tensor) -> torch.Tensor:
    """A gradient of zero that costs nothing to add, in the layout of an embedding's sparse gradient."""
    indices = torch.empty(1, 0, dtype=torch.int64, device=parameter.device)
    values = parameter.new_empty(0, parameter.shape[1])
    return torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)
