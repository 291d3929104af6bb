"""Prefix caches of several documents."""

from __future__ import annotations

import torch

from fim_core.inference.cache_slots import CacheSlots
from fim_core.inference.prefix_cache import PrefixCache
from tests.fim_core.inference.test_generation import build

MODEL = build("qwen3")
DOCUMENTS = [[place, place + 1, *range(10, 20)] for place in range(2, 8, 2)]


def test_documents_that_are_completed_in_turn_keep_their_states() -> None:
    slots = CacheSlots(MODEL, len(DOCUMENTS))
    for document in DOCUMENTS:
        slots.choose(document).read(document)
    computed = slots.computed
    assert computed == sum(map(len, DOCUMENTS))
    for document in DOCUMENTS:
        longer = [*document, 9]
        torch.testing.assert_close(slots.choose(longer).read(longer), PrefixCache(MODEL).read(longer))
    assert slots.computed == computed + len(DOCUMENTS)


def test_a_new_document_takes_the_place_of_the_least_recently_used_one() -> None:
    first, second, third = DOCUMENTS
    slots = CacheSlots(MODEL, 2)
    for document in (first, second, first, third):
        slots.choose(document).read(document)
    assert slots.choose(first).shared(first) == len(first)
    assert slots.choose(third).shared(third) == len(third)
    assert slots.choose(second).shared(second) == 0


def test_a_short_common_start_does_not_take_another_documents_place() -> None:
    slots = CacheSlots(MODEL, 2)
    first, second = [1, 2, 3, *range(10, 18)], [1, 2, 3, *range(20, 28)]
    for document in (first, second):
        slots.choose(document).read(document)
    assert slots.choose(first).shared(first) == len(first)
    slots.clear()
    assert slots.choose(first).shared(first) == 0
