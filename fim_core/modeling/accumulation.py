"""In-place accumulation of the gradients of the output layer and the embeddings.

Autograd computes a parameter's gradient as a new tensor of the parameter's size, which it then adds to `.grad`. For the
output layer and the embeddings of a large vocabulary that is hundreds of megabytes in each micro-batch, twice if they
are tied, although the embeddings' gradient is zero except for the tokens of the batch.

Here the backward pass of the output layer adds its product to `.grad` itself and returns a sparse tensor without
entries, and that of the embeddings returns a sparse tensor with entries for the tokens of the batch only. Autograd adds
sparse gradients to a dense `.grad` in place, and still runs the parameter's hooks once in each backward pass
(DeepSpeed's hooks read `.grad`).
"""

from __future__ import annotations

import torch
from torch import nn

ACCUMULATED_DTYPES = frozenset({torch.float32, torch.float64})
"""Number formats that are precise enough to accumulate many addends one by one."""


def accumulates_in_place(parameter: torch.Tensor) -> bool:
    """Whether gradients may be added to this parameter's `.grad` directly."""
    return parameter.is_leaf and parameter.requires_grad and parameter.dtype in ACCUMULATED_DTYPES


def make_embedding_gradient_sparse(embedding: nn.Module) -> None:
    """Make embeddings return gradients for the tokens of the batch only; `.grad` stays dense.

    Does nothing for other classes than `torch.nn.Embedding`, for frozen embeddings, and in half precision.
    """
    if not isinstance(embedding, nn.Embedding) or not accumulates_in_place(embedding.weight) or embedding.sparse:
        return
    embedding.sparse = True
    weight = embedding.weight

    def start_dense(gradient: torch.Tensor) -> None:
        """Create a dense `.grad` if there is none, as autograd would otherwise use the sparse tensor as `.grad`."""
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
        The gradient for the backward function to return, without entries, so that the parameter's hooks run.
    """
    right = right * factor
    if parameter.grad is None:
        parameter.grad = left @ right
    else:
        parameter.grad.addmm_(left, right)
    return _no_entries(parameter)


def add_scaled(parameter: torch.Tensor, gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Add factor * gradient to a parameter's gradient; `gradient` is overwritten, and may become `.grad`.

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
    """A zero gradient that costs nothing to add, in the layout of an embedding's sparse gradient."""
    indices = torch.empty(1, 0, dtype=torch.int64, device=parameter.device)
    values = parameter.new_empty(0, parameter.shape[1])
    return torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)
