"""What a run has done so far, and what its last step came to."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fim_core.training.steps import Position, Step

logger = logging.getLogger(__name__)

START = Position()


@dataclass(frozen=True)
class Progress:
    """What a run has done since its very first step. Kept in every state."""

    position: Position = START
    rows: int = 0
    packs: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    distinct_tokens: int = 0
    empty_steps: int = 0
    seconds: float = 0.0
    loss_before: float | None = None
    loss_after: float | None = None
    train_loss_last: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Progress:
        """Read what dataclasses.asdict made."""
        return cls(**{**content, "position": Position(**content["position"])})


@dataclass(frozen=True)
class Outcome:
    """One optimizer step in numbers.

    Attributes:
        loss: the global mean loss before the step, 0 where there was nothing to train on.
        lr: the learning rate that the step took.
        grad_norm: norm of the loss's gradient before clipping.
        operations: floating-point operations of all ranks.
    """

    loss: float
    lr: float
    grad_norm: float
    operations: float


def advance(progress: Progress, step: Step, outcome: Outcome, seconds: float) -> Progress:
    """The progress after a step."""
    if not step.denominator:
        logger.warning("optimizer step %d has no position to train on", step.position.step)
    return replace(
        progress,
        position=step.position,
        rows=progress.rows + step.rows,
        packs=progress.packs + step.packs,
        tokens=progress.tokens + step.tokens,
        trained_tokens=progress.trained_tokens + step.trained_tokens,
        distinct_tokens=progress.distinct_tokens + step.distinct_tokens,
        empty_steps=progress.empty_steps + (not step.denominator),
        seconds=progress.seconds + seconds,
        train_loss_last=outcome.loss if step.denominator else progress.train_loss_last,
    )
