"""The key/value cache of one row, which moves from prompt to prompt and keeps what they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        """Tokens."""
        return self.keys.shape[2]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their start."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit - 1  # first[:low] is shared; first[: high + 1] is not
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def next_token(logits: Tensor) -> Tensor:
    """The most probable token of each row ([…, vocabulary] to […], int64); the lowest id among equals.

    Compared in float32, as `GenerationMixin` does, so that ties are the same ties.
    """
    return logits.float().argmax(-1)


def why_not_shared(model: PreTrainedModel) -> str | None:
    """Why rows of this model cannot share the states of a common prefix; None if they can.

    They can where a token's states depend on the tokens up to it and nothing else.
    """
    supported, why = supports_prefix_tree(model.config)
    if not supported:
        return why
    if getattr(model.config, "attn_logit_softcapping", None):
        return f"{model.config.model_type} caps its attention scores"
    return None


class PrefixCache:
    """A model's cache for the tokens it read last. Reading others computes only what comes after the shared start.

    Walking through sorted prompts computes each node of their prefix tree once: no earlier prompt shares more with the
    next one than the one just before it. A server gains the same between two requests of one editor.

    Layers with a sliding window keep all tokens as well, since another prompt may go on from any of them; their masks
    hide what is outside the window.

    Args:
        model: a causal language model, in eval mode. One that cannot share reads every prompt from its start.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._shares = why_not_shared(model) is None
        self._cache = self._new_cache()
        self._ids: list[int] = []
        self.computed = 0
        """Tokens that have gone through the model so far."""

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Make `ids` the cached tokens; returns the logits after the last one, [vocabulary].

        Raises:
            ValueError: there are no tokens.
        """
        if not ids:
            raise ValueError("a prompt needs at least one token")
        cached, self._ids = self._ids, []  # stays empty if the model fails half-way, so that the next call starts anew
        # The last token is always computed, since its logits are wanted.
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
        """Add one token to the cached ones; returns the logits after it, [vocabulary]."""
        cached, self._ids = self._ids, []
        logits = self._forward([token], len(cached))
        self._ids = [*cached, token]
        return logits

    def states(self, start: int, end: int) -> list[LayerStates]:
        """Copies of every layer's states of the tokens from `start` to `end`, one row each."""
        return [
            LayerStates(keys[:, :, start:end].clone(), values[:, :, start:end].clone())
            for keys, values, _ in self._cache
        ]

    def _new_cache(self) -> DynamicCache:
        # With the configuration it would drop what is outside a layer's window.
        return DynamicCache() if self._shares else DynamicCache(config=self._model.config)

    def _forward(self, ids: Sequence[int], position: int) -> Tensor:
        device = self._model.device
        self.computed += len(ids)
        output = self._model(
            input_ids=torch.tensor([list(ids)], device=device),
            position_ids=torch.arange(position, position + len(ids), device=device)[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[0, -1]


def greedy_tokens(
    cache: PrefixCache, prompt: Sequence[int], *, stop_ids: set[int], max_new_tokens: int
) -> Iterator[int]:
    """The tokens of a greedy continuation, one at a time as they are computed.

    Ends after a stop token, which is yielded too, or after `max_new_tokens`.
    """
    token = int(next_token(cache.read(prompt)))
    yield token
    for _ in range(max_new_tokens - 1):
        if token in stop_ids:
            return
        token = int(next_token(cache.append(token)))
        yield token
