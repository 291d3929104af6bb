"""Alternatives to a greedy completion, against completing each of them alone."""

from __future__ import annotations

import pytest
import torch

from fim_core.inference.alternatives import decode_alternatives
from fim_core.inference.prefix_cache import PrefixCache
from tests.fim_core.inference.test_generation import CONFIGS, STOP, build

PROMPT = [5, 9, 2, 11, 7, 3]
KINDS = ["qwen3", *(kind for kind in CONFIGS if kind not in ("qwen3", "gemma2"))][:3]


def alone(model, first: int, max_new_tokens: int) -> list[int]:
    """The first token and its greedy continuation, with a whole forward pass for each token."""
    tokens = [first]
    while tokens[-1] not in STOP and len(tokens) < max_new_tokens:
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([PROMPT + tokens])).logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("kind", KINDS)
def test_equal_completing_each_alone(kind: str) -> None:
    model = build(kind)
    with torch.no_grad():
        logprobs = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    order = logprobs.sort(descending=True, stable=True).indices.tolist()
    *steps, found = decode_alternatives(PrefixCache(model), PROMPT, number=5, stop_ids=STOP, max_new_tokens=9)
    assert len(steps) <= 9
    assert [[token.id for token in tokens] for tokens in found] == [alone(model, first, 9) for first in order[1:6]]
    for tokens in found:
        assert tokens[0].logprob == pytest.approx(float(logprobs[tokens[0].id]), abs=1e-5)


def test_improbable_ones_are_dropped_and_end() -> None:
    model, cache = build("qwen3"), PrefixCache(build("qwen3"))
    *_, every = decode_alternatives(cache, PROMPT, number=6, stop_ids=set(), max_new_tokens=12)
    sums = sorted(sum(token.logprob for token in tokens) for tokens in every)
    least = (sums[2] + sums[3]) / 2
    steps = list(
        decode_alternatives(
            PrefixCache(model), PROMPT, number=6, stop_ids=set(), max_new_tokens=12, least_logprob=least
        )
    )
    assert steps[-1] == [tokens for tokens in every if sum(token.logprob for token in tokens) >= least]
    assert list(decode_alternatives(cache, PROMPT, number=6, stop_ids=set(), max_new_tokens=12, least_logprob=0.0)) == [
        []
    ]


def test_those_with_a_stop_string_end() -> None:
    model = build("qwen3")
    *steps, found = decode_alternatives(
        PrefixCache(model), PROMPT, number=4, stop_ids=set(), max_new_tokens=12, ends=lambda tokens: len(tokens) >= 3
    )
    assert [len(tokens) for tokens in found] == [3] * 4
    assert len(steps) == 2


def test_the_cache_still_serves_the_next_prompt() -> None:
    model = build("qwen3")
    cache = PrefixCache(model)
    list(decode_alternatives(cache, PROMPT, number=3, stop_ids=set(), max_new_tokens=4))
    torch.testing.assert_close(cache.read([*PROMPT, 4]), PrefixCache(model).read([*PROMPT, 4]))
    assert cache.computed == len(PROMPT) + 1
