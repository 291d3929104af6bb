"""Progress bar of a training run at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that draws the run's events on standard error; it draws nothing without a terminal."""
    with tqdm(desc=name, unit="step", disable=not sys.stderr.isatty()) as bar:

        def show(event: dict[str, Any]) -> None:
            match event["event"]:
                case "start":
                    bar.reset(total=event["total_steps"])
                    bar.update(event["step"])
                case "step":
                    bar.set_postfix(loss=f"{event['loss']:.3f}", rows_per_second=f"{event['rows_per_second']:.1f}")
                    bar.update(event["step"] - bar.n)
                case "eval" if not bar.disable:
                    bar.write(f"step {event['step']}: held-out loss {event['loss']:.4f}", file=sys.stderr)

        yield show
