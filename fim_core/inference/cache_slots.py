"""Prefix caches of several documents that are completed in turn."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from fim_core.inference.prefix_cache import PrefixCache

LEAST_SHARED = 0.5
"""Share of a prompt that a cache must hold to be used for it. Prompts of different documents may begin alike, too, with the
template and the definitions of tables."""


class CacheSlots:
    """Caches for the prompts of several documents, the least recently used one of which makes room for a new document.

    Args:
        model: a causal language model in eval mode.
        number: of caches, each of which can hold a whole prompt.
    """

    def __init__(self, model: PreTrainedModel, number: int) -> None:
        self._caches = [PrefixCache(model) for _ in range(number)]  # the least recently used one first

    @property
    def computed(self) -> int:
        """Number of tokens that the model has computed so far."""
        return sum(cache.computed for cache in self._caches)

    def choose(self, ids: Sequence[int]) -> PrefixCache:
        """The cache to read a prompt with."""
        best = max(self._caches, key=lambda cache: cache.shared(ids))
        chosen = best if best.shared(ids) >= LEAST_SHARED * len(ids) else self._caches[0]
        self._caches.remove(chosen)
        self._caches.append(chosen)
        return chosen

    def clear(self) -> None:
        """Forget all tokens."""
        for cache in self._caches:
            cache.clear()
