"""Live and peak bytes of a computation on the meta device, by what they are used for."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate within the block, until they are freed.

    Tensors on the meta device have storages with a size but without memory, so a training step of any size can be
    followed. Memory that a kernel uses only while it runs is not visible, except where `_SCRATCH` knows it.

    Attributes:
        label: what allocations are counted as from now on.
        phase: the part of the computation that now runs; each has a peak of its own.
        peaks: for each phase, the live bytes by label at the moment when their sum was largest.
        heap_peaks: the same of blocks smaller than `returned_from`, which are not in `peaks`.
    """

    def __init__(self, known: Iterable[torch.Tensor] = (), *, returned_from: int = 0) -> None:
        """Args:
        known: tensors that exist already, and are not counted.
        returned_from: bytes of a block from which the allocator returns it when it is freed; see `Machine`.
        """
        super().__init__()
        self.label = self.phase = "activations"
        self.peaks: dict[str, Counter[str]] = {}
        self.heap_peaks: dict[str, Counter[str]] = {}
        self._live: Counter[str] = Counter()
        self._heap: Counter[str] = Counter()
        self._returned_from = returned_from
        self._sizes: dict[int, tuple[str, int]] = {}  # by address of the storage, while it exists
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    @property
    def live(self) -> Mapping[str, int]:
        """Live bytes by label."""
        return self._live + self._heap

    @contextmanager
    def counting_as(self, label: str) -> Iterator[None]:
        """Count what is allocated within the block as `label`."""
        before, self.label = self.label, label
        try:
            yield
        finally:
            self.label = before

    def relabel(self, tensor: torch.Tensor, label: str) -> None:
        """Count an existing tensor as `label` from now on."""
        address = tensor.untyped_storage()._cdata
        if address in self._sizes:
            before, size = self._sizes[address]
            live = self._of(size)
            live[before] -= size
            live[label] += size
            self._sizes[address] = (label, size)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten.add_.Tensor and args[1].layout is torch.sparse_coo:
            return args[0]  # in place, and there is no such kernel for meta tensors
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                for part in (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,):
                    self._count(part.untyped_storage())
        if (scratch := _SCRATCH.get(function.name())) is not None:
            self._note_peak(scratch(*args))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._sizes or address in self._known:
            return
        self._sizes[address] = (self.label, storage.nbytes())
        self._of(storage.nbytes())[self.label] += storage.nbytes()
        weakref.finalize(storage, self._free, address).atexit = False
        self._note_peak()

    def _free(self, address: int) -> None:
        label, size = self._sizes.pop(address)
        self._of(size)[label] -= size

    def _of(self, size: int) -> Counter[str]:
        """The live bytes of blocks of such a size."""
        return self._live if size >= self._returned_from else self._heap

    def _note_peak(self, scratch: int = 0) -> None:
        """Record the live bytes if they, with `scratch` bytes of the running kernel, are this phase's largest so far."""
        self._live[self.label] += scratch
        for live, peaks in ((self._live, self.peaks), (self._heap, self.heap_peaks)):
            if self.phase not in peaks or live.total() > peaks[self.phase].total():
                peaks[self.phase] = +live
        self._live[self.label] -= scratch


def _flash_backward_scratch(
    grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> int:
    """Bytes that FlashAttention 2's backward kernel allocates besides its results.

    It sums the gradient of the queries in float32, and writes the gradients of keys and values for each query head before
    it sums them over the heads of a group (`mha_varlen_bwd` in torch's flash_attn/flash_api.cpp).
    """
    tokens, heads, width = query.shape
    sums = 4 * tokens * heads * (width + 1)
    shared = key.shape[1] != heads
    return sums + shared * 2 * key.shape[0] * heads * width * key.element_size()


_SCRATCH = {"torch_attn::_varlen_attn_backward": _flash_backward_scratch}
"""Bytes that a kernel uses while it runs, from its arguments."""
