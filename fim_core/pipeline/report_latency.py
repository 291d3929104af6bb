"""The latency in a report: of a candidate, as `fim serve` would serve it as champion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fim_core.config import Experiment
from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer
from fim_core.serving.latency import measure_latency


def measure_report_latency(
    experiment: Experiment, checkpoint: Path, states: Sequence[Completion], filter_in: Path
) -> dict[str, Any]:
    """Complete states one by one, with the completion filter and the candidates that the experiment serves.

    Args:
        experiment: provides the options of serving.
        checkpoint: folder of the model.
        states: of editors.
        filter_in: folder with the completion filter, if there is one.

    Returns:
        See `measure_latency`.

    Raises:
        FimError: the model cannot have candidates, and the experiment asks for them.
    """
    options = experiment.evaluation
    completer = Completer.load(
        checkpoint, candidates=experiment.serving.candidates, dialect=options.dialect, filter_in=filter_in
    )
    try:
        return measure_latency(completer, states, max_tokens=options.max_new_tokens)
    finally:
        completer.close()
