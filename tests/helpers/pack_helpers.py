"""Rows for packing tests, and a slow reference count of shared tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import strategies as st

from fim_core.packing import IGNORE_INDEX, Pack, Rows
from fim_core.packing.layout import Layout

TokensAndLabels = tuple[list[int], list[int]]


@st.composite
def row(draw: st.DrawFn) -> TokensAndLabels:
    """A prompt with few different tokens, so that shared prefixes are frequent, followed by any number of targets."""
    prompt = draw(st.lists(st.integers(0, 2), min_size=0, max_size=8))
    answer = draw(st.lists(st.integers(0, 2), min_size=0 if prompt else 1, max_size=4))
    mask = draw(st.sampled_from(["answer", "everything", "nothing", "gaps"]))
    tokens = prompt + answer
    if mask == "everything":
        return tokens, tokens
    if mask == "nothing":
        return tokens, [IGNORE_INDEX] * len(tokens)
    keep = draw(st.lists(st.booleans(), min_size=len(answer), max_size=len(answer))) if mask == "gaps" else None
    labels = [t if keep is None or keep[i] else IGNORE_INDEX for i, t in enumerate(answer)]
    return tokens, [IGNORE_INDEX] * len(prompt) + labels


def to_rows(pairs: Sequence[TokensAndLabels]) -> Rows:
    """Rows named row-0, row-1, …"""
    return Rows.from_lists([t for t, _ in pairs], [y for _, y in pairs], [f"row-{i}" for i in range(len(pairs))])


def shared_part(tokens: Sequence[int], labels: Sequence[int]) -> list[int]:
    """The part that other rows may share: everything before the token that makes the first prediction."""
    first = next((i for i, label in enumerate(labels) if i > 0 and label != IGNORE_INDEX), len(tokens))
    return list(tokens[: max(first - 1, 0)])


def distinct_tokens(pairs: Iterable[TokensAndLabels]) -> int:
    """Reference count of the tokens in a pack: nodes of a trie of dictionaries, plus the unshared tokens of each row."""
    trie: dict[int, dict] = {}
    nodes = own = 0
    for tokens, labels in pairs:
        node = trie
        part = shared_part(tokens, labels)
        own += len(tokens) - len(part)
        for token in part:
            if token not in node:
                node[token] = {}
                nodes += 1
            node = node[token]
    return nodes + own


def path_tokens(layout: Layout, segment: int, sequence: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tokens on a segment's path, and their positions in the packed sequence."""
    if segment < 0:
        return [], []
    start, length, parent = layout.segments[segment].tolist()
    tokens, places = path_tokens(layout, parent, sequence)
    here = range(start, start + length)
    return tokens + [sequence[i] for i in here], places + list(here)


def leaf_paths(pack: Pack, sequence: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """For each row of a pack, the tokens on its path and their positions."""
    return [path_tokens(pack.layout, int(leaf), sequence) for leaf in pack.leaves]
