"""Greedy choice of tokens and their log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from fim_core.inference.prefix_cache import PrefixCache


class Token(NamedTuple):
    """A chosen token.

    Attributes:
        id: token id.
        logprob: natural logarithm of its probability after the tokens before it, at temperature 1.
    """

    id: int
    logprob: float


def next_tokens(logits: Tensor) -> list[Token]:
    """The most probable token of each row ([rows, vocabulary]); the lowest id in a tie.

    Compared in float32 as in `GenerationMixin`, so that the same tokens tie.
    """
    scores = logits.float()
    best = scores.argmax(-1)
    logprobs = scores.gather(-1, best[:, None])[:, 0] - scores.logsumexp(-1)
    return list(map(Token, best.tolist(), logprobs.tolist()))


def greedy_tokens(
    cache: PrefixCache, prompt: Sequence[int], *, stop_ids: set[int], max_new_tokens: int
) -> Iterator[Token]:
    """Yield the tokens of a greedy continuation as they are computed.

    Ends after a stop token, which is also yielded, or after `max_new_tokens`.
    """
    [token] = next_tokens(cache.read(prompt)[None])
    yield token
    for _ in range(max_new_tokens - 1):
        if token.id in stop_ids:
            return
        [token] = next_tokens(cache.append(token.id)[None])
        yield token
