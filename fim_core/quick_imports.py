"""Faster imports of large libraries, which take most of the time in which a rank or a command starts."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("boto3", "mlflow", "scipy", "sklearn")
"""Libraries that DeepSpeed, accelerate and transformers import if they are there, for parts that are not used: training on
SageMaker, an autotuner, losses of object detection, a kind of speculative decoding."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without garbage collection, which finds no garbage in modules, and without UNUSED libraries.

    It takes a third off the CPU time of these imports. The modules are exempt from collection from then on.
    """
    # transformers remembers which libraries it has found.
    unused = () if "transformers" in sys.modules else UNUSED
    was_enabled, hidden = gc.isenabled(), [name for name in unused if name not in sys.modules]
    gc.disable()
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]  # None makes `import` raise ModuleNotFoundError
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
        gc.freeze()
        # Else libraries report their modules as leaked when the process ends.
        atexit.register(gc.unfreeze)
        if was_enabled:
            gc.enable()
