"""Parallel map over a stream of batches, with ordered results and a bounded number of batches in flight."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_work: Callable[[Any], Any] | None = None


def ordered_map(
    make: Callable[..., Callable[[T], R]], arguments: tuple[Any, ...], items: Iterable[T], *, num_proc: int
) -> Iterator[R]:
    """Apply `make(*arguments)` to each item; yields results in the order of the items.

    Args:
        make: builds the function that does the work, once in each process.
        arguments: must be picklable if there are several processes, as must items and results.
        num_proc: number of processes; 1 works in this one.
    """
    if num_proc == 1:
        yield from map(make(*arguments), items)
        return
    # Fresh processes: a fork would copy the locks of threads that DuckDB, Arrow and tokenizers may hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_proc, context, initializer=_start, initargs=(make, arguments)) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(_run, item))
                if len(pending) > 2 * num_proc:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@cache
def end_with_parent() -> None:
    """End this process at once when the one that started it through multiprocessing ends, in whatever way.

    Otherwise a process whose parent was killed continues, or waits forever for work. Does nothing in a process that
    was not started through multiprocessing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def _start(make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _work
    end_with_parent()
    # The processes use all cores already; more threads would only compete for them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _work = make(*arguments)


def _run(item: Any) -> Any:
    assert _work is not None, "_start ran first"
    return _work(item)
