"""The benchmark run: an evaluation of a checkpoint on the items of a benchmark."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fim_core.atomic import require_free, staging
from fim_core.benchmark.build import make_databases, read_benchmark
from fim_core.benchmark.contamination import find_contamination
from fim_core.config.evaluation import EvaluationConfig
from fim_core.errors import FimError
from fim_core.evaluation.checkpoint_prompts import build_tokens
from fim_core.evaluation.eval_set import MostFrequent
from fim_core.evaluation.page import write_page
from fim_core.evaluation.predictor_names import CHAMPION, MODEL
from fim_core.evaluation.predictors import Predictor, predict
from fim_core.evaluation.report import build_report, write_predictions, write_report
from fim_core.evaluation.run import constant_predictions
from fim_core.evaluation.scores import judge_predictions, score
from fim_core.folders.report import ReportFolder
from fim_core.records.schema import Completion


def run_benchmark(
    folder: Path,
    checkpoint: Path,
    output: Path,
    *,
    champion: Path | None = None,
    training: Iterable[str] = (),
    max_new_tokens: int = 96,
) -> dict[str, Any]:
    """Complete the items of a benchmark with a checkpoint, and write report.json, predictions.parquet and report.html.

    Args:
        folder: folder of the benchmark.
        checkpoint: a checkpoint of the trained_checkpoint asset; its recipe defines the prompts.
        output: folder of the report, created if it does not exist.
        champion: another such checkpoint to compare with, item by item.
        training: SQL documents of the training set; items that occur in them are left out and counted.
        max_new_tokens: limit of new tokens per completion.

    Returns:
        The report, with `contaminated` in its `counts`.

    Raises:
        FimError: there is no benchmark or no usable checkpoint, all items occur in the training set, or `output`
            contains a report already.
    """
    files = ReportFolder(output)
    require_free(files.report, files.predictions, files.page)
    items, settings = read_benchmark(folder)
    options = EvaluationConfig(max_rows=None, max_new_tokens=max_new_tokens, dialect=settings["dialect"])
    known = {found.row_id for found in find_contamination(items, training, options.dialect) if found.contaminated}
    clean = [item for item in items if item.row_id not in known]
    if not clean:
        raise FimError(
            "The training set contains every item of this benchmark. Build another one with a different --seed."
        )
    states = [Completion(prefix=item.prefix, suffix=item.suffix, ddl_context=item.ddl) for item in clean]
    # The most frequent completions of the items themselves: the best that any constant can do.
    most_frequent = MostFrequent.of((item.type, item.completion, 1) for item in clean)
    predictions = constant_predictions(clean, most_frequent)
    for name, place in ((MODEL, checkpoint), (CHAMPION, champion)):
        if place is not None:
            predictor = Predictor.load(place)
            tokens = build_tokens(predictor, states, [item.completion for item in clean])
            predictions[name] = predict(predictor, *tokens, options)
    if unreadable := sum(prediction is None for prediction in predictions[MODEL]):
        raise FimError(
            f"{unreadable} items of this benchmark contain control tokens of {checkpoint}. Build another one."
        )
    scores = score(
        judge_predictions(clean, predictions, dialect=options.dialect, databases=make_databases(settings["seed"]))
    )
    report = build_report(
        clean,
        predictions,
        scores,
        name=f"benchmark of {checkpoint}",
        options=options,
        seed=settings["seed"],
        show_samples=True,
        held_out=len(items),
    )
    report["counts"]["contaminated"] = len(known)
    with staging(output) as place:
        write_report(place, report)
        write_predictions(place, clean, predictions, scores)
        write_page(place)
    return report
