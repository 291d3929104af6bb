"""Sequence parallelism: the tokens of one pack divided among ranks, with attention over the whole pack.

Each rank of a group computes a contiguous part of the pack's tokens in all layers. Only attention needs the other tokens:
before it, an all-to-all gives each rank all tokens of a part of the heads, and after it another one restores the part of
the tokens with all heads (Jacobs et al., 2023, "DeepSpeed Ulysses", section 3). The attention functions and the layout of
the pack stay the same, as they see the whole pack.

DeepSpeed's wrapper for transformers (`UlyssesSPAttentionHF`) is not used: with SDPA it drops the mask that separates
packed rows, it needs a number of key heads that divides the ranks or is divided by them, and with DeepSpeed's groups the
gradient scale that it needs depends on the ZeRO stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from transformers import PretrainedConfig

from fim_core.errors import FimError
from fim_core.modeling.support import supports_prefix_tree


@dataclass(frozen=True)
class SequenceGroup:
    """The ranks that share the tokens of a pack, as one of them sees them.

    Attributes:
        size: number of ranks.
        rank: index of this rank in the group, and of its part of the tokens.
        process_group: for communication; None on the meta device, where nothing is sent.
    """

    size: int
    rank: int
    process_group: dist.ProcessGroup | None

    def key_repeats(self, key_heads: int) -> int:
        """How often each key head is repeated so that the key heads can be divided among the ranks.

        For example, 2 key heads on 4 ranks are repeated twice, and each rank gets one. If the query heads can be divided
        among the ranks, each rank's query heads match its key heads in the same order as before.
        """
        return self.size // gcd(key_heads, self.size)

    def gather_tokens(self, heads: torch.Tensor) -> torch.Tensor:
        """Exchange all heads of this rank's tokens for its heads of all tokens.

        Args:
            heads: [1, heads, tokens / size, width]; the number of heads is a multiple of `size`.

        Returns:
            [1, heads / size, tokens, width].
        """
        of_ranks = _AllToAll.apply(heads[0].unflatten(0, (self.size, -1)), self.process_group)
        return of_ranks.transpose(0, 1).flatten(1, 2)[None]

    def scatter_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Exchange this rank's heads of all tokens for all heads of its tokens: the inverse of `gather_tokens`.

        Args:
            tokens: [1, tokens, heads / size, width], as attention functions return it.

        Returns:
            [1, tokens / size, heads, width].
        """
        of_ranks = _AllToAll.apply(tokens[0].unflatten(0, (self.size, -1)), self.process_group)
        return of_ranks.transpose(0, 1).flatten(1, 2)[None]


class _AllToAll(torch.autograd.Function):
    """Send entry i of the first dimension to rank i of the group; entry j of the result comes from rank j."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        ctx.group = group
        return _exchange(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _exchange(grad, ctx.group), None


def _exchange(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    sent = tensor.contiguous()
    received = torch.empty_like(sent)
    if not sent.is_meta:
        dist.all_to_all_single(received, sent, group=group)
    return received


def require_sequence_parallel(config: PretrainedConfig, size: int) -> None:
    """Require that a model can be trained exactly with its packs divided among `size` ranks.

    Raises:
        FimError: it cannot.
    """
    if size == 1:
        return
    supported, why = supports_prefix_tree(config)
    if not supported:
        raise FimError(f"sequence_parallel_size is {size}, which this model does not support: {why}. Set it to 1.")
    heads = config.get_text_config().num_attention_heads
    if heads % size:
        possible = ", ".join(str(ranks) for ranks in range(1, heads + 1) if heads % ranks == 0)
        raise FimError(
            f"sequence_parallel_size is {size}, but the model's {heads} attention heads cannot be divided equally among "
            f"{size} ranks. Set it to one of {possible}."
        )
