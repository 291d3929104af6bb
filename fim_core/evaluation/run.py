"""Evaluation of a checkpoint on held-out rows: predictions, scores, report."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fim_core.confidence.filter import CompletionFilter
from fim_core.config import Experiment
from fim_core.config.evaluation import EvaluationConfig
from fim_core.errors import FimError
from fim_core.evaluation.base_model import Base, BaseUnavailable, predict_with_base
from fim_core.evaluation.checkpoint_prompts import build_tokens, same_prompts
from fim_core.evaluation.eval_set import (
    EvalSet,
    MostFrequent,
    editor_states,
    load_eval_set,
    most_frequent_in_training,
)
from fim_core.evaluation.predictor_names import BASE, CHAMPION, EMPTY, MODEL, MOST_FREQUENT, MOST_FREQUENT_BY_TYPE
from fim_core.evaluation.predictors import Predictor, predict
from fim_core.evaluation.rejected import accepted_rows, rejected_completions
from fim_core.evaluation.report import build_report, write_predictions, write_report
from fim_core.evaluation.scores import judge_predictions, score
from fim_core.evaluation.selection import Verdicts, select, with_shown
from fim_core.inference.row_progress import OnEvent, RowProgress
from fim_core.metrics.rows import EvalRow, Prediction
from fim_core.records.schema import Completion

MeasureLatency = Callable[[Sequence[Completion], Path], dict[str, Any]]
"""Measures the latency of the model on editor states, see `fim_core.serving.latency.measure_latency`."""

_log = logging.getLogger(__name__)


def evaluate(
    experiment: Experiment,
    *,
    checkpoint: Path,
    raw: Path,
    prompts: Path,
    dataset: Path,
    output: Path,
    base: Base | None = None,
    champion: Path | None = None,
    measure_latency: MeasureLatency | None = None,
    on_event: OnEvent = lambda event: None,
) -> dict[str, Any]:
    """Complete held-out rows with a checkpoint, and write the report and the predictions (see `ReportFolder`).

    The base model, the champion and the constants complete the same rows. Only one model is in memory at a time.

    Args:
        experiment: provides the options of the evaluation and the seed.
        checkpoint: HF folder.
        raw: the raw_completions file.
        prompts: folder of fim_prompts.
        dataset: folder of tokenized_dataset.
        output: existing folder for the files.
        base: the base model; if it cannot be loaded, the report says so.
        champion: HF folder of the champion.
        measure_latency: called last, with `evaluation.latency_rows` states of held-out rows and the folder with the completion
            filter; None: the latency is not measured.
        on_event: receives the events of `RowProgress` for each model.

    Returns:
        The summary of the report, see `headline`.

    Raises:
        FimError: no held-out rows, or a checkpoint that cannot be loaded.
    """
    options = experiment.evaluation
    evaluated = load_eval_set(raw, prompts, dataset, max_rows=options.max_rows, placeholder=experiment.data.placeholder)
    states = editor_states(evaluated, experiment.data.placeholder, options.latency_rows) if measure_latency else []
    progress = RowProgress(on_event, MODEL)
    predictor = Predictor.load(checkpoint)
    predictions: dict[str, Sequence[Prediction | None]] = {
        MODEL: predict(predictor, evaluated.prompts, evaluated.targets, options, progress)
    }
    verdicts = None
    if options.show is not None and experiment.data.has_feedback:
        verdicts = Verdicts(
            rejected_completions(predictor, prompts, experiment.data, options, progress),
            accepted_rows(raw, [row.row_id for row in evaluated.rows]),
        )
    del predictor
    _release_memory()
    unavailable = {}
    if base is not None:
        try:
            predictions[BASE] = predict_with_base(base, checkpoint, evaluated, options, RowProgress(on_event, BASE))
        except BaseUnavailable as error:
            unavailable[BASE] = str(error)
        _release_memory()
    predictions |= constant_predictions(evaluated.rows, most_frequent_in_training(prompts))
    if champion is not None:
        predictions[CHAMPION] = _predict_with_champion(
            champion, evaluated, checkpoint, options, RowProgress(on_event, CHAMPION)
        )
    judged = judge_predictions(evaluated.rows, predictions, dialect=options.dialect)
    selection = select(judged, options, experiment.seed, verdicts)
    if selection.filter is not None:
        selection.filter.write(output)
    filters = {MODEL: selection.filter} | (_filter_of_champion(champion) if champion else {})
    scores = score(with_shown(judged, filters))
    report = build_report(
        evaluated.rows,
        predictions,
        scores,
        name=experiment.name,
        options=options,
        seed=experiment.seed,
        show_samples=experiment.metadata.show_samples,
        held_out=evaluated.held_out,
        unavailable=unavailable,
        show=selection.report,
        latency=measure_latency(states, output) if measure_latency else None,
    )
    write_report(output, report)
    write_predictions(output, evaluated.rows, predictions, scores)
    return headline(report)


def constant_predictions(
    rows: Sequence[EvalRow], most_frequent: MostFrequent
) -> dict[str, Sequence[Prediction | None]]:
    """The predictions of predictors without a model."""
    return {
        EMPTY: [Prediction("") for _ in rows],
        MOST_FREQUENT: [Prediction(most_frequent.overall) for _ in rows],
        MOST_FREQUENT_BY_TYPE: [Prediction(most_frequent.by_type.get(row.type, "")) for row in rows],
    }


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Summarize a report for a manifest: `rows`, `groups`, `metrics`, and the values of `others` by metric."""
    return {
        "rows": report["counts"]["evaluated"],
        "groups": report["counts"]["groups"],
        "metrics": report["metrics"],
        "others": {
            name: {metric: figure["value"] for metric, figure in other["metrics"].items()}
            for name, other in report["others"].items()
        },
    }


def _predict_with_champion(
    folder: Path, evaluated: EvalSet, checkpoint: Path, options: EvaluationConfig, progress: RowProgress
) -> Sequence[Prediction | None]:
    """Predict the held-out rows with the champion in `folder`; their tokens are in the format of `checkpoint`.

    A prediction is None where the champion cannot read the row.
    """
    predictor = Predictor.load(folder)
    prompts, targets = evaluated.prompts, evaluated.targets
    if not same_prompts(folder, checkpoint):
        prompts, targets = build_tokens(predictor, evaluated.raw, [row.completion for row in evaluated.rows])
    predictions = predict(predictor, prompts, targets, options, progress)
    del predictor
    _release_memory()
    return predictions


def _filter_of_champion(folder: Path) -> dict[str, CompletionFilter | None]:
    """The champion's completion filter by predictor; empty if this version cannot read it, so that what it shows is unknown."""
    try:
        return {CHAMPION: CompletionFilter.read(folder)}
    except FimError as error:
        _log.warning("What the champion shows is left out of the report: %s", error)
        return {}


def _release_memory() -> None:
    """Free the memory of the last model before the next one is loaded."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
