"""Training loss of packed batches, with the output layer computed only at predicted positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from fim_core.errors import FimError
from fim_core.modeling.accumulation import (
    accumulates_in_place,
    add_product,
    add_scaled,
    make_embedding_gradient_sparse,
)
from fim_core.modeling.attention import attends_over_packs
from fim_core.modeling.sequence_parallel import SequenceGroup
from fim_core.modeling.support import causal_model
from fim_core.packing import PackedBatch

if TYPE_CHECKING:
    from peft import PeftModel

Reduction = Literal["token", "sample"]

TILE_LOGITS = 2**24
"""Logits that are computed at a time: 64 MiB in float32."""


class LossSums(NamedTuple):
    """Contribution of a micro-batch to the loss of an optimizer step, which is sum(total) / sum(weight).

    Both sums are over micro-batches and ranks, so the same rows give the same loss and gradient however they are packed,
    accumulated or sharded. The ranks of a sequence-parallel group have different parts of `total`, and the same `weight`.

    Attributes:
        total: weighted sum of the losses, float32 scalar; it has a gradient, even without a predicted token.
        weight: number of predicted tokens (`token`) or of rows that have any (`sample`), in all parts of the batch,
            float32 scalar.
        row_totals: float32 [rows of the batch], unweighted sum of the cross entropies of each row, detached; for
            metrics and to identify the rows of a loss that is not finite.
        row_targets: int64 [rows of the batch], number of predicted tokens of each row, in all parts of the batch.
        losses: float32 [n], the cross entropy of each predicted token, in the order of the batch's targets, detached.
    """

    total: torch.Tensor
    weight: torch.Tensor
    row_totals: torch.Tensor
    row_targets: torch.Tensor
    losses: torch.Tensor


class PackedCausalLM(nn.Module):
    """A causal language model whose forward takes a packed batch and returns its loss.

    All parameters are used inside this one forward, so that wrappers which gather them around it (ZeRO-3) see all.

    Args:
        model: what `build_model` returned.
        reduction, label_smoothing, z_loss, tile_logits: see `batch_loss`.
        accumulate_in_place: see `batch_loss`; the embeddings then return sparse gradients, which autograd adds to their
            `.grad` in place.
        sequence_group: see `batch_loss`.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        reduction: Reduction = "token",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        tile_logits: int = TILE_LOGITS,
        accumulate_in_place: bool = False,
        sequence_group: SequenceGroup | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.reduction: Reduction = reduction
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss
        self.tile_logits = tile_logits
        self.accumulate_in_place = accumulate_in_place
        self.sequence_group = sequence_group
        if accumulate_in_place:
            make_embedding_gradient_sparse(causal_model(model).get_input_embeddings())

    def forward(self, batch: PackedBatch) -> LossSums:
        return batch_loss(
            self.model,
            batch,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            tile_logits=self.tile_logits,
            accumulate_in_place=self.accumulate_in_place,
            sequence_group=self.sequence_group,
        )


def batch_loss(
    model: PreTrainedModel | PeftModel,
    batch: PackedBatch,
    *,
    reduction: Reduction = "token",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    tile_logits: int = TILE_LOGITS,
    accumulate_in_place: bool = False,
    sequence_group: SequenceGroup | None = None,
) -> LossSums:
    """Cross entropy of a packed batch, for training and evaluation alike.

    Args:
        model: a causal language model, or one that PEFT has wrapped.
        batch: on the model's device.
        reduction: `token`: every predicted token has weight 1; `sample`: every row has weight 1, whatever its length.
        label_smoothing: share of the target that is spread evenly over the vocabulary (Szegedy et al., 2016,
            "Rethinking the Inception Architecture", section 7), as in `torch.nn.functional.cross_entropy`.
        z_loss: weight of log(Z)^2 for each prediction, with Z the softmax's denominator (Chowdhery et al., 2022,
            "PaLM", section 5).
        tile_logits: number of logits to compute at a time.
        accumulate_in_place: the backward pass adds the gradient of the output layer's weight to its `.grad` directly
            (`fim_core.modeling.accumulation`). Works with `backward`, but not with `torch.autograd.grad`.
        sequence_group: the ranks that compute one part of the batch each (`PackedBatch.part`), all at the same time.

    Raises:
        FimError: the batch shares prefixes and the model does not attend over packs.
    """
    causal = causal_model(model)
    hidden = run_body(causal, batch, sequence_group)
    if reduction == "sample":
        position_weights = 1.0 / batch.row_targets[batch.target_rows].to(torch.float32)
        weight = (batch.row_targets > 0).sum().to(torch.float32)
    else:
        position_weights = torch.ones(len(batch.targets), device=hidden.device)
        weight = batch.row_targets.sum().to(torch.float32)
    head = causal.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    operands: tuple[torch.Tensor | None, ...] = (hidden, head.weight, head.bias)
    if not torch.is_grad_enabled():  # an autograd function does not notice this, and would compute gradients
        operands = tuple(None if tensor is None else tensor.detach() for tensor in operands)
    scale, softcap = logit_scale(causal.config), logit_softcap(causal.config)
    options = LossOptions(scale, softcap, label_smoothing, z_loss, tile_logits, accumulate_in_place)
    total, losses = TiledCrossEntropy.apply(*operands, batch.targets, position_weights, options)
    row_totals = torch.zeros(len(batch.row_ids), device=losses.device, dtype=losses.dtype)
    row_totals.index_add_(0, batch.target_rows, losses)
    return LossSums(total, weight, row_totals, batch.row_targets, losses)


def run_body(causal: PreTrainedModel, batch: PackedBatch, sequence_group: SequenceGroup | None = None) -> torch.Tensor:
    """Hidden states after the last layer and its norm, at the positions from which a token is predicted; [n, hidden].

    A model whose attention does not support packs is run over one row at a time, which requires that rows share nothing.
    """
    body = causal.base_model
    if attends_over_packs(causal.config):
        with last_layer_only_at(causal, batch.predict_positions):
            states = body(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                use_cache=False,
                pack_layout=batch.layout,
                sequence_group=sequence_group,
            ).last_hidden_state[0]
        return states[batch.predict_positions]
    layout = batch.layout
    if len(layout.segments) != len(batch.row_ids):
        raise FimError(
            f"The attention {causal.config._attn_implementation!r} cannot share prefixes. "
            "Set data.pack_samples to flat or none for this model."
        )
    rows = [
        body(
            input_ids=batch.input_ids[:, start:stop], position_ids=batch.position_ids[:, start:stop], use_cache=False
        ).last_hidden_state[0]
        for start, stop in zip(layout.starts.tolist(), layout.stops.tolist(), strict=True)
    ]
    return torch.cat(rows)[batch.predict_positions]


@contextmanager
def last_layer_only_at(causal: PreTrainedModel, positions: torch.Tensor) -> Iterator[None]:
    """Compute the last layer's output projection and MLP only at `positions`.

    Only those hidden states reach the output layer, and no later layer attends to the others, so loss and gradients
    do not change. With activation checkpointing, layers are recomputed without these hooks, so there all positions are
    computed.

    Args:
        causal: a model of one of the types in `PACKED_MODEL_TYPES`.
        positions: int64 [n], without duplicates.
    """
    body: Any = causal.base_model
    layer = body.layers[-1]
    modules: list[nn.Module] = [] if causal.is_activation_checkpointing else [layer.self_attn.o_proj, layer.mlp]

    def select(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        lengths.append(inputs[0].shape[1])
        return (inputs[0][:, positions],)

    def spread(_: nn.Module, __: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output.new_zeros(1, lengths.pop(), output.shape[2]).index_copy(1, positions, output)

    lengths: list[int] = []
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(select).remove)
            hooks.callback(module.register_forward_hook(spread).remove)
        yield


def logit_scale(config: Any) -> float:
    """Factor on the logits: `logit_scale` of Cohere, 1 / `logits_scaling` of Granite, else 1."""
    return getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)


def logit_softcap(config: Any) -> float | None:
    """Bound of the tanh on logits (Gemma), or None."""
    return getattr(config.get_text_config(), "final_logit_softcapping", None)


class LossOptions(NamedTuple):
    """Options of the output layer and the cross entropy.

    Attributes:
        scale, softcap: see `logit_scale` and `logit_softcap`.
        label_smoothing, z_loss, tile_logits, accumulate_in_place: see `batch_loss`.
    """

    scale: float
    softcap: float | None
    label_smoothing: float
    z_loss: float
    tile_logits: int
    accumulate_in_place: bool = False


class TiledCrossEntropy(torch.autograd.Function):
    """Linear output layer and weighted cross entropy in one, a tile of positions at a time.

    Each tile's gradients are computed in the forward pass, while its logits exist, and only multiplied by the gradient
    of the sum in the backward pass, so that no logits are computed twice. (Hsu et al., 2024, "Liger Kernel",
    section 3.2, do the same on GPUs.) Logits, losses and sums of gradients are in float32 (float64 for float64 models).

    The gradient of `weight` is a product, (gradient of the logits)^T @ hidden. Until the backward pass, either its
    factors or the product are kept, whichever is smaller, so that memory does not grow with positions x vocabulary.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [n, hidden]
        weight: torch.Tensor,  # [vocabulary, hidden]
        bias: torch.Tensor | None,  # [vocabulary]
        targets: torch.Tensor,  # [n]
        position_weights: torch.Tensor,  # [n]
        options: LossOptions,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        precise = torch.promote_types(hidden.dtype, torch.float32)
        (n, size), vocabulary = hidden.shape, weight.shape[0]
        losses = torch.zeros(n, device=hidden.device, dtype=precise)
        total = torch.zeros((), device=hidden.device, dtype=precise)
        grad_hidden = torch.empty(n, size, device=hidden.device, dtype=precise) if of_hidden else None
        grad_bias = torch.zeros(vocabulary, device=hidden.device, dtype=precise) if of_bias else None
        grad_weight = grad_logits = None
        if of_weight and n < size:
            grad_logits = hidden.new_empty(n, vocabulary)
        elif of_weight:
            grad_weight = torch.zeros(weight.shape, device=hidden.device, dtype=precise)
        tile = max(1, options.tile_logits // vocabulary)
        for begin in range(0, n, tile):
            here = slice(begin, begin + tile)
            states = hidden[here]
            logits = nn.functional.linear(states, weight, bias).to(precise)
            of_position = position_weights[here, None].to(precise)
            losses[here], tile_total, grad = _tile_loss(
                logits, targets[here, None], of_position, options, with_gradient=any(ctx.needs_input_grad)
            )
            total += tile_total
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[here] = grad @ weight
            if grad_logits is not None:
                grad_logits[here] = grad
            elif grad_weight is not None:
                grad_weight.addmm_(grad.T, states) if precise == weight.dtype else grad_weight.add_(grad.T @ states)
        ctx.save_for_backward(grad_hidden, grad_bias, grad_logits, hidden if grad_logits is not None else None)
        # The backward pass overwrites the product and releases it, so it is not among the saved tensors.
        ctx.grad_weight, ctx.weight, ctx.in_place = grad_weight, weight, options.accumulate_in_place
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(losses)
        return total, losses

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_bias, grad_logits, hidden = ctx.saved_tensors
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        results: list[torch.Tensor | None] = [None, None, None]
        if of_hidden:
            results[0] = (grad_hidden * grad_total).to(ctx.dtypes[0])
        if of_weight:
            results[1] = _grad_weight(ctx, grad_logits, hidden, grad_total)
        if of_bias:
            results[2] = (grad_bias * grad_total).to(ctx.dtypes[2])
        return (*results, None, None, None)


def _grad_weight(
    ctx: Any, grad_logits: torch.Tensor | None, hidden: torch.Tensor | None, grad_total: torch.Tensor
) -> torch.Tensor:
    """The gradient of the output layer's weight; without entries if it has been added to `.grad` already."""
    weight: torch.Tensor = ctx.weight
    in_place = ctx.in_place and accumulates_in_place(weight)
    if grad_logits is not None:
        assert hidden is not None
        if in_place:
            return add_product(weight, grad_logits.T, hidden, grad_total)
        product = (grad_logits.T @ hidden).to(grad_total.dtype)
    else:
        product, ctx.grad_weight = ctx.grad_weight, None
        if product is None:
            raise RuntimeError("The output layer's gradient can be computed only once: retain_graph is not supported.")
        if in_place:
            return add_scaled(weight, product, grad_total)
    return product.mul_(grad_total).to(ctx.dtypes[1])


def _tile_loss(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, options: LossOptions, *, with_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses of one tile of positions.

    Args:
        logits: [tile, vocabulary], output of the linear layer; overwritten.
        targets, weights: [tile, 1].
        with_gradient: whether to compute the gradient.

    Returns:
        Cross entropies [tile]; their weighted sum with z-loss; the sum's gradient for the linear layer's output
        [tile, vocabulary], or meaningless values without `with_gradient`.
    """
    smoothing, vocabulary = options.label_smoothing, logits.shape[1]
    if options.scale != 1.0:
        logits *= options.scale
    slope = None
    if options.softcap is not None:
        logits = logits.div_(options.softcap).tanh_()
        slope = 1 - logits.square() if with_gradient else None
        logits *= options.softcap
    target_logits = (1 - smoothing) * logits.gather(1, targets)
    if smoothing:
        target_logits += smoothing * logits.mean(dim=-1, keepdim=True)
    highest = logits.amax(dim=-1, keepdim=True)
    exponentials = logits.sub_(highest).exp_()
    z = exponentials.sum(dim=-1, keepdim=True)
    log_z = z.log() + highest
    losses = log_z - target_logits
    total = ((losses + options.z_loss * log_z.square()) * weights).sum()
    if with_gradient:
        # weight * (softmax * (1 + 2 z_loss log Z) - target distribution)
        weights = weights * options.scale
        grad = exponentials.mul_(weights * (1 + 2 * options.z_loss * log_z) / z)
        if smoothing:
            grad -= weights * (smoothing / vocabulary)
        grad.scatter_add_(1, targets, weights * (smoothing - 1))
        if slope is not None:
            grad *= slope
    return losses[:, 0], total, exponentials
