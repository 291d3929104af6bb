"""What editors show: features of the completion filter, and choosing among candidates, on the held-out rows of an experiment.

    python -m benchmarks.shown configs/demo.yaml [--checkpoint FOLDER] [--rows 200]

The first table gives, for several sets of features, the means over 20 random halves of the groups: fitted to one half so that at
most 5% of the correct completions are lost, measured on the other. The second one compares the greedy completion with a choice
among four.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.held_out import held_out_prompts
from fim_core.cli.model import chosen_checkpoint
from fim_core.confidence.fit import CannotFit, choose_threshold, fit_regression
from fim_core.config import load_experiment
from fim_core.evaluation.eval_set import EvalSet
from fim_core.evaluation.predictors import Predictor
from fim_core.inference.alternatives import decode_alternatives
from fim_core.inference.greedy import Token, greedy_tokens
from fim_core.inference.prefix_cache import PrefixCache
from fim_core.metrics.abstention import is_empty
from fim_core.metrics.sql_workers.measures import Measures, SqlRow
from fim_core.metrics.sql_workers.pool import shared_workers
from fim_core.metrics.sql_workers.statement import Statement

HALVES = 20
LOSE = 0.05
CANDIDATES = 4


@dataclass(frozen=True)
class Written:
    """A completion: its text, the log-probabilities of its tokens, and what the SQL workers measured."""

    text: str
    logprobs: list[float]
    measures: Measures

    @property
    def is_sound(self) -> bool:
        """Whether nothing is known to be wrong with its statement."""
        binds = self.measures["statement_binds"]
        return Statement(self.measures["statement_parses"] == 1, None if binds is None else binds == 1).is_sound


FEATURES: Mapping[str, Callable[[Written], Sequence[float]]] = {
    "mean log-probability": lambda w: [float(np.mean(w.logprobs))],
    "minimum log-probability": lambda w: [min(w.logprobs)],
    "log-probability": lambda w: [sum(w.logprobs)],
    "log-probability, parses": lambda w: [sum(w.logprobs), w.measures["statement_parses"] or 0],
    "log-probability, parses, binds (used)": lambda w: [sum(w.logprobs), *_sql(w)],
    "these, mean, minimum, first and length": lambda w: [
        *(sum(w.logprobs), *_sql(w), np.mean(w.logprobs), min(w.logprobs), w.logprobs[0], np.log(len(w.logprobs)))
    ],
}


def main(
    config: Annotated[Path, typer.Argument(help="Experiment with current data and a checkpoint.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Another checkpoint.")] = None,
    rows: Annotated[int | None, typer.Option(help="Held-out rows. Default: all.")] = None,
    max_tokens: int = 64,
) -> None:
    """Print both tables."""
    experiment = load_experiment(config)
    predictor = Predictor.load(chosen_checkpoint(checkpoint, config))
    evaluated, prompts = held_out_prompts(experiment, predictor, rows)
    decoded, greedy_ms, choosing_ms = _decode(predictor, prompts, max_tokens)
    written = _judge(predictor, evaluated, decoded, experiment.evaluation.dialect)
    greedy = [candidates[0] for candidates in written]
    groups = np.array([row.group for row in evaluated.rows])
    print(f"{len(greedy)} rows in {len(set(groups))} groups\n")
    _print_features(greedy, groups)
    chosen = [_choose(candidates) for candidates in written]
    replaced = sum(one is not first for one, first in zip(chosen, greedy, strict=True))
    unsound = sum(not first.is_sound for first in greedy)
    print(f"\n{unsound} greedy completions do not parse or bind; {replaced} of them are replaced.")
    print("| | exact match | parses | binds | same result | ms |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    _print_choice("greedy", greedy, greedy_ms)
    _print_choice(f"choice among {CANDIDATES}", chosen, greedy_ms + choosing_ms * unsound / len(greedy))
    print(
        f"\nDecoding the alternatives of one prompt takes {choosing_ms:.1f} ms, the greedy completion {greedy_ms:.1f} ms."
    )


def _decode(
    predictor: Predictor, prompts: Sequence[list[int]], max_tokens: int
) -> tuple[list[list[list[Token]]], float, float]:
    """The greedy completion and the alternatives of each prompt; milliseconds of a greedy completion and of alternatives."""
    cache, decoded, seconds = PrefixCache(predictor.model), {}, np.zeros(2)
    for place in sorted(range(len(prompts)), key=prompts.__getitem__):
        cache.read(prompts[place])  # neither of the two is charged for the prompt
        start = time.perf_counter()
        greedy = list(greedy_tokens(cache, prompts[place], stop_ids=predictor.stop_ids, max_new_tokens=max_tokens))
        middle = time.perf_counter()
        *_, others = decode_alternatives(
            cache, prompts[place], number=CANDIDATES - 1, stop_ids=predictor.stop_ids, max_new_tokens=max_tokens
        )
        seconds += middle - start, time.perf_counter() - middle
        decoded[place] = [greedy, *others]
    greedy_ms, choosing_ms = 1000 * seconds / len(prompts)
    return [decoded[place] for place in range(len(prompts))], greedy_ms, choosing_ms


def _judge(
    predictor: Predictor, evaluated: EvalSet, decoded: Sequence[list[list[Token]]], dialect: str
) -> list[list[Written]]:
    texts = [
        [predictor.encoder.decode([t.id for t in tokens if t.id not in predictor.stop_ids]) for tokens in candidates]
        for candidates in decoded
    ]
    rows = [
        SqlRow(row.prefix, row.suffix, row.completion, tuple(dict.fromkeys(made)), dialect, row.ddl)
        for row, made in zip(evaluated.rows, texts, strict=True)
    ]
    return [
        [
            Written(text, [token.logprob for token in tokens], found.measures[text])
            for text, tokens in zip(made, candidates, strict=True)
        ]
        for made, candidates, found in zip(texts, decoded, shared_workers().judge(rows), strict=True)
    ]


def _choose(candidates: Sequence[Written]) -> Written:
    greedy, *others = candidates
    sound = [other for other in others if other.is_sound]
    if greedy.is_sound or not sound:
        return greedy
    return max(sound, key=lambda written: sum(written.logprobs))


def _print_features(greedy: Sequence[Written], groups: np.ndarray) -> None:
    used = [place for place, written in enumerate(greedy) if not is_empty(written.text)]
    correct = np.array([greedy[place].measures["exact_match_sql"] == 1 for place in used])
    print(f"{len(used)} completions are not empty; {correct.mean():.1%} of them are correct.")
    print(
        "| features | shown | correct of the shown | wrong hidden | correct lost |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, of in FEATURES.items():
        features = np.array([of(greedy[place]) for place in used], float)
        results = [_half(features, correct, groups[used], seed) for seed in range(HALVES)]
        means = np.mean([result for result in results if result is not None], axis=0)
        print(f"| {name} | " + " | ".join(f"{value:.1%}" for value in means) + " |")


def _half(features: np.ndarray, correct: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, ...] | None:
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    fit = np.isin(groups, names[: len(names) // 2])
    try:
        model, unseen = fit_regression(features[fit], correct[fit], groups[fit])
        threshold = choose_threshold(unseen, correct[fit], lose_accepted=LOSE)
    except CannotFit:
        return None
    shown = model.predict_proba(features[~fit])[:, 1] >= threshold
    right = correct[~fit]
    return shown.mean(), right[shown].mean(), (~shown)[~right].mean(), (~shown)[right].mean()


def _sql(written: Written) -> list[float]:
    binds = written.measures["statement_binds"]
    return [written.measures["statement_parses"] or 0, binds == 1, binds == 0]


def _print_choice(name: str, written: Sequence[Written], ms: float) -> None:
    names = ("exact_match_sql", "parses", "binds", "execution_match")
    values = ([value for w in written if (value := w.measures[n]) is not None] for n in names)
    print(f"| {name} | " + " | ".join(f"{np.mean(column):.1%}" for column in values) + f" | {ms:.1f} |")


if __name__ == "__main__":
    typer.run(main)
