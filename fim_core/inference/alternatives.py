"""Alternatives to the greedy completion of a prompt, decoded together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from fim_core.inference.greedy import Token
from fim_core.inference.prefix_cache import PrefixCache
from fim_core.inference.shared_decoding import Batch, BatchRow, DecodedRow, decoding_attention


def decode_alternatives(
    cache: PrefixCache,
    prompt: Sequence[int],
    *,
    number: int,
    stop_ids: set[int],
    max_new_tokens: int,
    least_logprob: float = -math.inf,
    ends: Callable[[Sequence[Token]], bool] = lambda tokens: False,
) -> Iterator[list[list[Token]]]:
    """Continue a prompt with its second, third, … most probable token, and each of them greedily.

    The states of the prompt are stored once for all of them. Selecting among such continuations found as many correct
    completions as among those of a beam search, at half its cost (see benchmarks/README.md).

    Args:
        cache: of a model that can share prefixes (`why_not_shared` returns None).
        prompt: token ids.
        number: of alternatives.
        stop_ids: tokens that end an alternative.
        max_new_tokens: limit of new tokens, the stop token included.
        least_logprob: alternatives with a lower sum of log-probabilities are dropped, which saves steps.
        ends: whether an alternative is finished although it has no stop token, because of a stop string.

    Yields:
        After each step of the model, the tokens of the finished alternatives, stop token included, the most probable first
        token first.
    """
    rows = [DecodedRow(list(prompt)) for _ in range(number)]
    for row, first in zip(rows, _after_the_best(cache.read(prompt), number), strict=True):
        row.add(first, stop_ids, max_new_tokens)
    yield _finished(rows, least_logprob, ends)
    waiting = [row for row in rows if not row.done]
    if not waiting:
        return
    end = len(prompt)
    batch = Batch(cache.states(0, end), [BatchRow(row, cache.states(end, end)) for row in waiting], max_new_tokens)
    while batch.live:
        # Set for each step, since the model may complete another prompt before the next one.
        with decoding_attention(cache.model):
            batch.step(cache.model, stop_ids, max_new_tokens)
        yield _finished(rows, least_logprob, ends)


def _finished(
    rows: Sequence[DecodedRow], least_logprob: float, ends: Callable[[Sequence[Token]], bool]
) -> list[list[Token]]:
    """The tokens of finished rows; ends rows with a stop string and those below `least_logprob`."""
    for row in rows:
        row.done = row.done or ends(row.tokens)
    possible = [sum(token.logprob for token in row.tokens) >= least_logprob for row in rows]
    finished = [row.tokens for row, kept in zip(rows, possible, strict=True) if row.done and kept]
    for row, kept in zip(rows, possible, strict=True):
        row.done |= not kept
    return finished


def _after_the_best(logits: Tensor, number: int) -> list[Token]:
    """The most probable tokens after the first ([vocabulary]); the lowest ids first in ties."""
    scores = logits.float()
    order = scores.sort(descending=True, stable=True)
    logprobs = order.values - scores.logsumexp(-1)
    return list(map(Token, order.indices[1 : number + 1].tolist(), logprobs[1 : number + 1].tolist()))
