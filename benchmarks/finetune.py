"""Benchmark of fine-tuning a pretrained model on real rows: gain over the base, effect of options, gate decisions.

    python -m benchmarks.finetune --model FOLDER --data FILE [--train-rows N] [--eval-rows N] [--cases NAME … | all]
                                  [--storage FOLDER] [--list]

FILE is an export with the columns INPUT, OUTPUT and optionally TYPE. Rows are held out as in `fim train`, by whole
statements, and the cases train and evaluate on files of these rows through the stages of `fim train`, `fim evaluate` and
the gate. `--list` shows the cases; some run only if named in `--cases`. Each case changes one thing in the first; the base
model is scored once per prompt format.

Results are kept as JSON lines in the storage folder, so that an interrupted run continues with the missing cases.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.finetune_cases import CASES, NATIVE, Rows, experiment_of
from fim_core.config import Experiment
from fim_core.errors import FimError

METRICS = ("exact_match_sql", "edit_similarity", "parses", "loss", "loss_end")
OTHERS = ("base", "empty", "most_frequent")
TRAINING_FILES: dict[Rows, float] = {"half": 0.5, "all": 1.0, "double": 2.0, "shuffled": 1.0}
"""Files of training rows, and the size of each as a multiple of `--train-rows`."""


def main() -> None:
    """Run the missing cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id of a pretrained model")
    parser.add_argument("--data", type=Path, help="CSV or Parquet export")
    parser.add_argument("--train-rows", type=int, default=200)
    parser.add_argument("--eval-rows", type=int, default=120)
    by_default = [name for name, case in CASES.items() if case.by_default]
    parser.add_argument("--cases", nargs="+", default=by_default, choices=[*CASES, "all"], metavar="NAME")
    parser.add_argument("--storage", type=Path, help="keep artifacts and results here. Default: a temporary folder")
    parser.add_argument("--list", action="store_true", help="list the cases and exit")
    options = parser.parse_args()
    if "all" in options.cases:
        options.cases = list(CASES)
    if options.list:
        print(
            "\n".join(
                f"{name:<12} {case.shows}{'' if case.by_default else ' (by name)'}" for name, case in CASES.items()
            )
        )
        return
    if not options.model or not options.data:
        parser.error("--model and --data are required: the project ships neither a model nor real rows")
    if options.storage:
        compare(options, options.storage)
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run the requested cases that have no result yet, and print the table of all requested ones."""
    folder.mkdir(parents=True, exist_ok=True)
    template = folder / "native.tmpl"
    template.write_text(NATIVE, encoding="utf-8")
    try:
        files = split(options, folder, template)
        end_of_turn = end_of_turn_of(options.model)
        results = {}
        for name in options.cases:
            if name == "end-of-turn" and end_of_turn is None:
                print(f"{name}: skipped, because this tokenizer has no such token.", flush=True)
                continue
            experiment = experiment_of(
                name,
                model=options.model,
                train=files[CASES[name].rows],
                held_out=files["held-out"],
                template=template,
                storage=folder,
                end_of_turn=end_of_turn,
            )
            results[name] = result_of(name, experiment, files, folder / "results.jsonl")
            print(f"{name}: {results[name]['seconds']:,.0f} s", flush=True)
    except FimError as error:
        raise SystemExit(f"Error: {error}") from error
    print("\n".join(["", *table(results), "", *verdicts(results)]))


def split(options: argparse.Namespace, folder: Path, template: Path) -> dict[str, Path]:
    """Files of training rows by name, and `held-out`. Smaller files hold the first rows of larger ones.

    Raises:
        FimError: too few rows.
    """
    import pyarrow.parquet as pq

    from fim_core.folders.prompts import PromptsFolder
    from fim_core.folders.raw import RawFolder
    from fim_core.pipeline import run

    content = {
        "name": "finetune-split",
        "storage": str(folder),
        "model": {"name_or_path": options.model},
        "data": {"sources": [str(options.data)], "template": str(template)},
    }
    made = run(Experiment.model_validate(content), until="fim_prompts")
    prompts = pq.read_table(PromptsFolder(made["fim_prompts"].artifact.path).rows, columns=["row_id", "split"])
    split_of = dict(zip(*prompts.to_pydict().values(), strict=True))
    raw = pq.read_table(
        RawFolder(made["raw_completions"].artifact.path).rows, columns=["row_id", "type", "input", "output"]
    )
    rows = sorted(raw.to_pylist(), key=lambda row: hashlib.sha256(row["row_id"].encode()).digest())
    train = [row for row in rows if split_of.get(row["row_id"]) == "train"]
    held_out = [row for row in rows if split_of.get(row["row_id"]) == "eval"]
    most = max(round(share * options.train_rows) for share in TRAINING_FILES.values())
    if len(train) < most or len(held_out) < options.eval_rows:
        raise FimError(
            f"{options.data} gives {len(train):,} rows to train on and {len(held_out):,} held out; {most:,} and "
            f"{options.eval_rows:,} are needed. Lower --train-rows or --eval-rows."
        )
    files = {"held-out": write_rows(folder / f"held-out-{options.eval_rows}.csv", held_out[: options.eval_rows])}
    for name, share in TRAINING_FILES.items():
        chosen = train[: round(share * options.train_rows)]
        if name == "shuffled":
            completions = [row["output"] for row in chosen]
            random.Random(0).shuffle(completions)
            chosen = [row | {"output": completion} for row, completion in zip(chosen, completions, strict=True)]
        files[name] = write_rows(folder / f"train-{options.train_rows}-{name}.csv", chosen)
    return files


def write_rows(file: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write an export if it does not exist yet; a rewritten export would count as changed."""
    if not file.exists():
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["TYPE", "INPUT", "OUTPUT"])
            writer.writerows((row["type"], row["input"], row["output"]) for row in rows)
    return file


def end_of_turn_of(model: str) -> str | None:
    """The end-of-turn token of the model's chat markup, looked up by the names that known families use."""
    from fim_core.prompt_format.tokens import load_tokenizer

    vocabulary = load_tokenizer(model).get_vocab()
    return next((token for token in ("<|im_end|>", "<end_of_turn>", "<|eot_id|>") if token in vocabulary), None)


def result_of(name: str, experiment: Experiment, files: Mapping[str, Path], results: Path) -> dict[str, Any]:
    """The result of a case, from an earlier run of the same code on the same rows if there is one."""
    from fim_core.pipeline import STAGES
    from fim_core.store import digest

    key = digest(
        {
            "experiment": experiment.model_dump(mode="json", exclude={"storage"}),
            "code": [stage.code_version for stage in STAGES],
            "rows": [hashlib.sha256(files[part].read_bytes()).hexdigest() for part in (CASES[name].rows, "held-out")],
        }
    )
    if results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            if (earlier := json.loads(line))["key"] == key:
                return dict(earlier)
    began = time.perf_counter()
    found = run_case(experiment)
    found |= {"key": key, "case": name, "seconds": time.perf_counter() - began}
    with results.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(found) + "\n")
    return found


def run_case(experiment: Experiment) -> dict[str, Any]:
    """Train, evaluate and decide. Returns figures by predictor, paired differences, steps, and the gate's decision."""
    from fim_core.cli.pipeline import run_pipeline
    from fim_core.folders.decision import DecisionFolder
    from fim_core.folders.report import ReportFolder

    try:
        made = run_pipeline(experiment, until="champion_model")
    except FimError as error:
        # A destructive learning rate may lead to a loss that is not finite, which stops training.
        if "not finite" not in str(error):
            raise
        return {"promote": False, "reasons": [str(error)], "figures": {}, "differences": {}, "steps": None}
    report = ReportFolder(made["evaluation_report"].artifact.path).read()
    decision = json.loads(DecisionFolder(made["champion_model"].artifact.path).decision.read_text(encoding="utf-8"))
    figures = {"model": report["metrics"]} | {name: report["others"][name]["metrics"] for name in OTHERS}
    return {
        "promote": decision["promote"],
        "reasons": [rule["reason"] for rule in decision["results"] if rule["holds"] is not None],
        "figures": {who: {metric: found.get(metric) for metric in METRICS} for who, found in figures.items()},
        "differences": {name: report["others"][name]["differences"]["exact_match_sql"] for name in OTHERS},
        "steps": made["trained_checkpoint"].artifact.counts["steps"],
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown table of the constants, the base model for each prompt format, and the cases."""
    yield (
        "| | exact match (SQL) | minus base | minus empty | minus most frequent | edit similarity | parses | "
        "loss, nats/token | loss at the end | steps | gate | s |"
    )
    yield "| --- |" + " ---: |" * 9 + " --- | ---: |"
    figures = [(name, result["figures"]) for name, result in results.items() if result["figures"]]
    shown: set[tuple[str, ...]] = set()
    for who, title in (("empty", "empty completion"), ("most_frequent", "most frequent completion"), ("base", "base")):
        for name, found in figures:
            exact, *rest = figure_cells(found[who])
            if (who, exact, *rest) not in shown:
                shown.add((who, exact, *rest))
                of_case = f" (prompts of {name})" if who == "base" else ""
                yield f"| {title}{of_case} | {exact} | | | | {' | '.join(rest)} | | | |"
    for name, result in results.items():
        exact, *rest = figure_cells(result["figures"]["model"]) if result["figures"] else ["–"] * len(METRICS)
        gains = [difference_cell(result["differences"].get(other)) for other in OTHERS]
        verdict = "promoted" if result["promote"] else "refused"
        run = [str(result["steps"] or "–"), verdict, f"{result['seconds']:,.0f}"]
        yield f"| {' | '.join([name, exact, *gains, *rest, *run])} |"


def figure_cells(figures: Mapping[str, Any]) -> list[str]:
    """The figures of one predictor in the order of `METRICS`: shares in percent, losses in nats."""
    values = [(figures[metric] or {}).get("value") for metric in METRICS]
    return [
        "–" if value is None else f"{value:.2f}" if metric.startswith("loss") else f"{value:.1%}"
        for metric, value in zip(METRICS, values, strict=True)
    ]


def difference_cell(difference: Mapping[str, float] | None) -> str:
    """A paired difference in percentage points, with its interval."""
    if difference is None:
        return "–"
    value, low, high = (100 * difference[bound] for bound in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def verdicts(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The gate's decision on each case, and whether the cases that it must refuse were refused."""
    for name, result in results.items():
        yield f"{name}: {'promoted' if result['promote'] else 'refused'}"
        yield from (f"    {reason}" for reason in result["reasons"])
    wrong = [name for name in results if CASES[name].refuse and results[name]["promote"]]
    if wrong:
        yield f"The gate promoted what it should have refused: {', '.join(wrong)}."


if __name__ == "__main__":
    main()
