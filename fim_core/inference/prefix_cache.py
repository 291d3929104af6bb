"""Key/value cache of one row that is reused from prompt to prompt for the tokens that they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from fim_core.modeling.support import supports_prefix_tree


@dataclass(frozen=True)
class LayerStates:
    """Keys and values of one layer, each [rows, key/value heads, tokens, head size]."""

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.keys.shape[2]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix of two sequences."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit - 1  # binary search: first[:low] is shared, first[: high + 1] is not
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def why_not_shared(model: PreTrainedModel) -> str | None:
    """The reason why rows of this model cannot share the states of a common prefix; None if they can.

    They can if the states of a token depend only on the tokens up to it.
    """
    supported, why = supports_prefix_tree(model.config)
    if not supported:
        return why
    if getattr(model.config, "attn_logit_softcapping", None):
        return f"{model.config.model_type} soft-caps its attention scores"
    return None


class PrefixCache:
    """A model's cache of the tokens that it read last. Reading others computes only the tokens after the common prefix.

    Reading prompts in sorted order computes each node of their prefix tree once, since no earlier prompt has a longer
    common prefix with the next one than its predecessor. For example, after [a, b, c] the prompt [a, b, d] computes only d.
    A server saves the same work between two requests of one editor.

    Layers with a sliding window keep all tokens, too, since the next prompt may continue from any of them; their masks hide
    tokens outside the window.

    Args:
        model: a causal language model in eval mode. If it cannot share prefixes, every prompt is computed in full.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._shares = why_not_shared(model) is None
        self._cache = self._new_cache()
        self._ids: list[int] = []
        self.computed = 0
        """Number of tokens that the model has computed so far."""

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Make `ids` the cached tokens, and return the logits after the last one: [vocabulary].

        Raises:
            ValueError: `ids` is empty.
        """
        if not ids:
            raise ValueError("a prompt needs at least one token")
        cached, self._ids = self._ids, []  # stays empty if the model raises, so that the next call starts over
        # The last token is always computed because its logits are needed.
        shared = min(common_prefix(cached, ids), len(ids) - 1) if self._shares else 0
        if shared:
            self._cache.crop(shared - len(cached))
        else:
            self._cache = self._new_cache()
        logits = self._forward(ids[shared:], shared)
        self._ids = list(ids)
        return logits

    @torch.inference_mode()
    def append(self, token: int) -> Tensor:
        """Append one token to the cached ones, and return the logits after it: [vocabulary]."""
        cached, self._ids = self._ids, []
        logits = self._forward([token], len(cached))
        self._ids = [*cached, token]
        return logits

    def shared(self, ids: Sequence[int]) -> int:
        """The number of tokens at the start of `ids` that are cached."""
        return common_prefix(self._ids, ids)

    def clear(self) -> None:
        """Forget all tokens."""
        self._cache, self._ids = self._new_cache(), []

    def states(self, start: int, end: int) -> list[LayerStates]:
        """Copies of every layer's states of the tokens from `start` to `end`, with one row each."""
        return [
            LayerStates(keys[:, :, start:end].clone(), values[:, :, start:end].clone())
            for keys, values, _ in self._cache
        ]

    def _new_cache(self) -> DynamicCache:
        # With a config, the cache would drop tokens outside a layer's window.
        return DynamicCache() if self._shares else DynamicCache(config=self.model.config)

    def _forward(self, ids: Sequence[int], position: int) -> Tensor:
        device = self.model.device
        self.computed += len(ids)
        output = self.model(
            input_ids=torch.tensor([list(ids)], device=device),
            position_ids=torch.arange(position, position + len(ids), device=device)[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1]
