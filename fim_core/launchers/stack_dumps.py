"""Stack dumps of hung ranks, which they write to their logs on a signal (faulthandler)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_CURRENT = "Current thread 0x"
_FRAME = re.compile(r'  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)')


def describe_stacks(answers: Mapping[int, Sequence[str]]) -> str:
    """The innermost frame of each rank, one line per rank.

    A rank that is stopped, or blocked by the kernel (waiting for a disk), does not answer: it is the one that the others
    wait for. If all answer, it is the one that is not in a collective of `torch.distributed`.

    Args:
        answers: by rank, the lines that it has written to its log since the signal.
    """
    return "\n".join(f"Rank {rank} {_describe_stack(lines)}." for rank, lines in sorted(answers.items()))


def _describe_stack(lines: Sequence[str]) -> str:
    """The innermost frame of the main thread, which is the current one, as the signal interrupts it."""
    dump = max((number for number, line in enumerate(lines) if line.startswith(_CURRENT)), default=None)
    innermost = None if dump is None else _FRAME.match(lines[dump + 1])
    if innermost is None:
        return "does not answer"
    return f"is in {innermost['function']} ({innermost['file']}, line {innermost['line']})"
