"""The evaluation of a checkpoint on held-out rows: completions, measures, figures, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from fim_core.config import Experiment
from fim_core.config.evaluation import EvaluationConfig
from fim_core.evaluation.html import write_page
from fim_core.evaluation.predictors import Predictor, predict
from fim_core.evaluation.progress import OnEvent, RowProgress
from fim_core.evaluation.prompts import build_tokens, same_prompts
from fim_core.evaluation.report import CHAMPION, MODEL, build_report, write_predictions, write_report
from fim_core.evaluation.rows import EvalSet, load_eval_set, most_frequent_completions
from fim_core.evaluation.scores import EvalRow, Prediction, score


def evaluate(
    experiment: Experiment,
    *,
    checkpoint: Path,
    raw: Path,
    prompts: Path,
    dataset: Path,
    output: Path,
    champion: Path | None = None,
    baseline_models: Mapping[str, PreTrainedModel] | None = None,
    on_event: OnEvent = lambda event: None,
) -> dict[str, Any]:
    """Complete held-out rows with a checkpoint and write report.json, predictions.parquet and report.html.

    Beside the checkpoint stand two rules that need no model, the empty completion and the most frequent completion of
    the row's TYPE among the training rows, and, if given, other models. The champion completes the same rows.

    Args:
        experiment: options of the evaluation, and its seed.
        checkpoint: HF folder.
        raw: the raw_completions file.
        prompts: folder of fim_prompts.
        dataset: folder of tokenized_dataset.
        output: existing folder that the files are written to.
        champion: HF folder of the champion.
        baseline_models: other models with the checkpoint's tokenizer, by name, such as one with its first weights.
        on_event: gets the events of `RowProgress` for each model.

    Returns:
        Counts and headline figures: `rows`, `groups`, `metrics` (each `{value, low, high, n}`), `baselines` and
        `champion` (values by metric).

    Raises:
        FimError: no held-out rows, or a checkpoint that cannot be loaded.
    """
    evaluated = load_eval_set(raw, prompts, dataset, max_rows=experiment.evaluation.max_rows)
    candidate = Predictor.load(checkpoint)
    predictors = {MODEL: candidate}
    for name, model in (baseline_models or {}).items():
        model.set_attn_implementation("sdpa")
        predictors[name] = replace(candidate, model=model.eval(), weights=None)
    if champion is not None:
        predictors[CHAMPION] = Predictor.load(champion)
    predictions = constant_predictions(evaluated.rows, most_frequent_completions(prompts)) | {
        name: _predictions(predictor, evaluated, checkpoint, experiment.evaluation, RowProgress(on_event, name))
        for name, predictor in predictors.items()
    }
    scores = score(evaluated.rows, predictions, dialect=experiment.evaluation.dialect)
    report = build_report(
        evaluated.rows,
        predictions,
        scores,
        name=experiment.name,
        options=experiment.evaluation,
        seed=experiment.seed,
        show_samples=experiment.metadata.show_samples,
        held_out=evaluated.held_out,
    )
    write_report(output, report)
    write_predictions(output, evaluated.rows, predictions, scores)
    write_page(output, report)
    return headline(report)


def constant_predictions(
    rows: list[EvalRow], most_frequent: Mapping[str, str]
) -> dict[str, Sequence[Prediction | None]]:
    """What the rules that need no model predict."""
    return {
        "empty": [Prediction("") for _ in rows],
        "most_frequent": [Prediction(most_frequent.get(row.type, "")) for row in rows],
    }


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report in short, for a manifest."""
    others = report["baselines"] | ({CHAMPION: report["champion"]["metrics"]} if report["champion"] else {})
    values = {name: {metric: figure["value"] for metric, figure in figures.items()} for name, figures in others.items()}
    return {
        "rows": report["counts"]["evaluated"],
        "groups": report["counts"]["groups"],
        "metrics": report["metrics"],
        "champion": values.pop(CHAMPION, None),
        "baselines": values,
    }


def _predictions(
    predictor: Predictor, evaluated: EvalSet, checkpoint: Path, options: EvaluationConfig, progress: RowProgress
) -> Sequence[Prediction | None]:
    """Predictions for the held-out rows, whose tokens are those of `checkpoint`; None where a champion cannot read one."""
    prompts, targets = evaluated.prompts, evaluated.targets
    if not same_prompts(predictor.folder, checkpoint):
        prompts, targets = build_tokens(predictor, evaluated.raw, [row.completion for row in evaluated.rows])
    return predict(predictor, prompts, targets, options, progress)
