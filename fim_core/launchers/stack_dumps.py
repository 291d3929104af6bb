"""Where the ranks of a run that hangs stand, from the stacks that they write on request (faulthandler)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_CURRENT = "Current thread 0x"
_FRAME = re.compile(r'  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)')


def where_they_stand(answers: Mapping[int, Sequence[str]]) -> str:
    """One line a rank.

    A rank that is stopped, or that the kernel keeps waiting for a disk, does not answer: it is the one that the others
    wait for. Where all answer, it is the one that does not stand in a collective of `torch.distributed`.

    Args:
        answers: by rank, the lines that it has written to its log since it was asked.
    """
    return "\n".join(f"Rank {rank} {_standing(lines)}." for rank, lines in sorted(answers.items()))


def _standing(lines: Sequence[str]) -> str:
    """Where the main thread stands. The signal interrupts that thread, so it is the current one."""
    asked = max((number for number, line in enumerate(lines) if line.startswith(_CURRENT)), default=None)
    innermost = None if asked is None else _FRAME.match(lines[asked + 1])
    if innermost is None:
        return "does not answer"
    return f"stands in {innermost['function']} ({innermost['file']}, line {innermost['line']})"
