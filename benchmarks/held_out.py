"""Held-out rows of an experiment as prompts of any checkpoint."""

from __future__ import annotations

from fim_core.config import Experiment
from fim_core.evaluation.checkpoint_prompts import build_tokens, same_prompts
from fim_core.evaluation.eval_set import EvalSet, load_eval_set
from fim_core.evaluation.predictors import Predictor
from fim_core.folders.raw import RawFolder
from fim_core.store import Store


def held_out_prompts(
    experiment: Experiment, predictor: Predictor, max_rows: int | None
) -> tuple[EvalSet, list[list[int]]]:
    """The held-out rows of an experiment's current data, and their prompts in the format of a checkpoint.

    Raises:
        FimError: the experiment's data has not been prepared.
    """
    store = Store(experiment.storage)
    raw, prompts, dataset = (
        store.current(asset, experiment.name).path for asset in ("raw_completions", "fim_prompts", "tokenized_dataset")
    )
    evaluated = load_eval_set(RawFolder(raw).rows, prompts, dataset, max_rows=max_rows)
    if same_prompts(predictor.folder, prompts):
        return evaluated, evaluated.prompts
    return evaluated, build_tokens(predictor, evaluated.raw, [row.completion for row in evaluated.rows])[0]
