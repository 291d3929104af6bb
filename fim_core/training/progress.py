"""Progress of a run and outcome of its steps."""

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
    """Totals of a run since its first step, over all attempts; saved in every state."""

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
        """The progress from the output of dataclasses.asdict."""
        return cls(**{**content, "position": Position(**content["position"])})


@dataclass(frozen=True)
class Outcome:
    """Results of one optimizer step.

    Attributes:
        loss: the global mean loss before the step, in nats; 0 without a position to train on.
        lr: learning rate of the step.
        grad_norm: norm of the gradient before clipping.
    """

    loss: float
    lr: float
    grad_norm: float


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
