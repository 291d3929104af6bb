"""Batched decoding of rows whose common prompt prefix is stored and read once.

For each layer, a batch holds the states of the common prompt prefix (the trunk, one copy) and of each row's own tokens (padded
on the right). For example, the prompts [a, b, c] and [a, b, d, e] have the trunk [a, b] and the own tokens [c] and [d, e].
A query attends to both parts under one softmax, so the result equals plain attention; layers with a sliding window mask keys
that are too far back. Finished rows leave and waiting rows join in groups, since both copy the states of all rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from fim_core.inference.greedy import Token, next_tokens
from fim_core.inference.prefix_cache import LayerStates, PrefixCache, common_prefix

ATTENTION = "fim_decode"

# Share of places that must be free before rows leave and join, which copies the states of all rows: as much work as one or
# two steps.
FREE_SHARE = 0.25


@dataclass
class DecodedRow:
    """A prompt and the tokens generated for it so far; calls `on_done` after the last one."""

    prompt: list[int]
    on_done: Callable[[], None] = lambda: None
    tokens: list[Token] = field(default_factory=list)
    done: bool = False

    def add(self, token: Token, stop_ids: set[int], max_new_tokens: int) -> None:
        """Append the next token, and finish the row if it is the last."""
        self.tokens.append(token)
        self.done = token.id in stop_ids or len(self.tokens) >= max_new_tokens
        if self.done:
            self.on_done()


@dataclass(frozen=True)
class BatchRow:
    """A row and its own states (after the trunk): one per layer, each with one row."""

    row: DecodedRow
    own: list[LayerStates]


def decode(
    model: PreTrainedModel, rows: list[DecodedRow], *, stop_ids: set[int], max_new_tokens: int, batch_size: int
) -> None:
    """Generate every row's tokens by greedy decoding.

    Args:
        model: in eval mode; `why_not_shared` must return None for it.
        rows: sorted by prompt, so that neighbours have the longest common prefixes.
        stop_ids: tokens that end a row.
        max_new_tokens: limit of new tokens, the stop token included.
        batch_size: rows decoded together.
    """
    cache = PrefixCache(model)
    waiting = deque(rows)
    batch: Batch | None = None
    while waiting or (batch and batch.live):
        live = batch.live if batch else []
        joining = [waiting.popleft() for _ in range(min(batch_size - len(live), len(waiting)))]
        together = [row.prompt for row in live + joining]
        # The common prefix of all prompts is that of the first and the last in sorted order.
        trunk_length = common_prefix(min(together), max(together))
        members: list[BatchRow] = []
        for row in joining:
            [token] = next_tokens(cache.read(row.prompt)[None])
            row.add(token, stop_ids, max_new_tokens)
            if not row.done:
                members.append(BatchRow(row, cache.states(trunk_length, len(row.prompt))))
        trunk = cache.states(0, trunk_length) if joining or batch is None else batch.trunk
        if batch:
            members = batch.unfinished(trunk[0].length) + members
        batch = Batch(trunk, members, max_new_tokens) if members else None
        if batch:
            capacity = batch_size if waiting else len(batch.rows)
            with decoding_attention(model):
                while len(batch.live) > (1 - FREE_SHARE) * capacity:
                    batch.step(model, stop_ids, max_new_tokens)


class Batch:
    """Rows that are decoded together.

    Args:
        trunk: states of the common prefix of all prompts, one per layer, each with one row.
        members: the rows; none is done.
        max_new_tokens: limit of new tokens per row.
    """

    def __init__(self, trunk: list[LayerStates], members: list[BatchRow], max_new_tokens: int) -> None:
        self.rows = [member.row for member in members]
        self.trunk = trunk
        lengths = [member.own[0].length for member in members]
        # Every row is done within max_new_tokens steps, and a batch whose rows are all done takes no more steps.
        room = max(lengths) + max_new_tokens
        self._own = [_padded(layer, room) for layer in zip(*(member.own for member in members), strict=True)]
        device = trunk[0].keys.device
        self._lengths = torch.tensor(lengths, device=device)  # [rows]: number of own tokens of each row
        self._longest = max(lengths)
        self._every = torch.arange(len(members), device=device)
        self._hidden: dict[int | None, Tensor] = {}  # by window, for one step, see `_hidden_keys`

    @property
    def live(self) -> list[DecodedRow]:
        """The rows that are not done."""
        return [row for row in self.rows if not row.done]

    def unfinished(self, start: int) -> list[BatchRow]:
        """The rows that are not done, with their states from token `start` on, for the next batch."""
        lengths = self._lengths.tolist()
        return [
            BatchRow(
                row,
                [
                    _row_states(trunk, own, index, lengths[index], start)
                    for trunk, own in zip(self.trunk, self._own, strict=True)
                ],
            )
            for index, row in enumerate(self.rows)
            if not row.done
        ]

    @torch.inference_mode()
    def step(self, model: PreTrainedModel, stop_ids: set[int], max_new_tokens: int) -> None:
        """Run the model on the last token of every row, and append the next token to each row that is not done."""
        device = self._lengths.device
        self._longest += 1
        self._hidden = {}
        output = model(
            input_ids=torch.tensor([[row.tokens[-1].id] for row in self.rows], device=device),
            position_ids=(self.trunk[0].length + self._lengths)[:, None],
            use_cache=False,
            fim_batch=self,
        )
        self._lengths += 1
        for row, token in zip(self.rows, next_tokens(output.logits[:, -1]), strict=True):
            if not row.done:
                row.add(token, stop_ids, max_new_tokens)

    def _hidden_keys(self, window: int | None) -> Tensor:
        """Mask of the keys that the new token of each row does not see: padding, and tokens `window` or more positions back.

        bool [rows, 1, 1, trunk tokens + longest]
        """
        if window not in self._hidden:
            device, start = self._lengths.device, self.trunk[0].length
            keys, queries = torch.arange(start + self._longest, device=device), start + self._lengths[:, None]
            hidden = keys > queries
            if window is not None:
                hidden |= keys <= queries - window
            self._hidden[window] = hidden[:, None, None]
        return self._hidden[window]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Append the states of one token to each row, and attend from that token.

        Args:
            layer: index of the layer.
            query: [rows, heads, 1, head size]; the heads that share a key/value head are adjacent.
            key: [rows, key/value heads, 1, head size]; `value` likewise.
            scaling: factor of the scores.
            window: a token sees keys less than this many positions back; None for all.

        Returns:
            [rows, 1, heads, head size]
        """
        trunk, own = self.trunk[layer], self._own[layer]
        own.keys[self._every, :, self._lengths] = key[:, :, 0]
        own.values[self._every, :, self._lengths] = value[:, :, 0]
        rows, key_heads, _, size = key.shape
        group = query.shape[1] // key_heads
        query = query.reshape(rows, key_heads, group, size) * scaling

        # All rows attend to the trunk in one matrix product per head: [key/value heads, rows * group, trunk tokens].
        together = query.transpose(0, 1).reshape(key_heads, rows * group, size)
        to_trunk = (together @ trunk.keys[0].transpose(1, 2)).view(key_heads, rows, group, -1).transpose(0, 1)
        to_own = query @ own.keys[:, :, : self._longest].transpose(2, 3)
        scores = torch.cat([to_trunk, to_own], dim=-1).masked_fill_(self._hidden_keys(window), -torch.inf)
        # Softmax in at least float32, as in the other attention functions.
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
        on_trunk, on_own = weights.split([trunk.length, self._longest], dim=-1)
        of_trunk = on_trunk.transpose(0, 1).reshape(key_heads, rows * group, -1) @ trunk.values[0]
        of_own = on_own @ own.values[:, :, : self._longest]
        result = of_trunk.view(key_heads, rows, group, -1).transpose(0, 1) + of_own
        return result.reshape(rows, 1, key_heads * group, -1)


@contextmanager
def decoding_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block, the model attends through a `Batch`; its attention is restored afterwards."""
    before = model.config._attn_implementation
    AttentionInterface.register(ATTENTION, _attention)
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    fim_batch: Batch,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`Batch.attend` with the signature of an attention function of transformers."""
    return fim_batch.attend(module.layer_idx, query, key, value, scaling, sliding_window), None


def _padded(rows: tuple[LayerStates, ...], room: int) -> LayerStates:
    """The states of one layer for several rows, padded with zeros to `room` tokens."""

    def block(states: list[Tensor]) -> Tensor:
        _, heads, _, size = states[0].shape
        result = states[0].new_zeros(len(states), heads, room, size)
        for index, row in enumerate(states):
            result[index, :, : row.shape[2]] = row[0]
        return result

    return LayerStates(block([row.keys for row in rows]), block([row.values for row in rows]))


def _row_states(trunk: LayerStates, own: LayerStates, index: int, length: int, start: int) -> LayerStates:
    """The states of one row from token `start` of its prompt on; `length` is the number of its own tokens."""

    def cut(shared: Tensor, mine: Tensor) -> Tensor:
        tail = mine[index : index + 1, :, max(0, start - trunk.length) : length]
        return torch.cat([shared[:, :, start:], tail], dim=2) if start < trunk.length else tail

    return LayerStates(cut(trunk.keys, own.keys), cut(trunk.values, own.values))
