"""The benchmark is valid, deterministic and runnable, and detects contamination."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import typer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from fim_core.benchmark.build import (
    DIALECT,
    build_benchmark,
    make_databases,
    read_benchmark,
)
from fim_core.benchmark.contamination import find_contamination, training_documents
from fim_core.benchmark.masks import MASKS
from fim_core.benchmark.run import run_benchmark
from fim_core.cli import benchmark as command
from fim_core.errors import FimError
from fim_core.evaluation.scores import judge_predictions, score
from fim_core.integrity import read_sealed, write_sealed
from fim_core.metrics.rows import EvalRow, Prediction
from tests.fim_core.conftest import Evaluated, save_checkpoint


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    build_benchmark(folder, items_per_kind=4, seed=5)
    return folder


@pytest.fixture(scope="module")
def items(benchmark: Path) -> list[EvalRow]:
    return read_benchmark(benchmark)[0]


def test_the_same_seed_gives_the_same_bytes(benchmark: Path, tmp_path: Path) -> None:
    build_benchmark(tmp_path, items_per_kind=4, seed=5)
    for file in ("items.jsonl", "benchmark.json"):
        assert (tmp_path / file).read_bytes() == (benchmark / file).read_bytes()


def test_masks_of_every_kind_in_complete_queries(items: list[EvalRow]) -> None:
    assert {kind: sum(item.type == kind for item in items) for kind in MASKS} == dict.fromkeys(MASKS, 4)
    for item in items:
        assert item.prefix + item.completion + item.suffix == item.group
        assert (item.completion == "") == (item.type == "nothing")
        assert ("\n" in item.completion) == (item.type == "multi_line")
        if item.type == "identifier":
            assert item.completion in item.ddl
        if item.type == "expression":
            assert item.completion.count("(") == item.completion.count(")")


def test_gold_completions_match_and_empty_ones_only_where_nothing_is_missing(items: list[EvalRow]) -> None:
    made = {
        "gold": [Prediction(item.completion) for item in items],
        "empty": [Prediction("") for _ in items],
        "made_up": [Prediction(item.completion + " made_up") for item in items],
    }
    found = score(judge_predictions(items, made, dialect=DIALECT, databases=make_databases(5)))
    assert found.executions == {"compared": len(items)}
    assert found.columns["gold"]["execution_match"].tolist() == [1.0] * len(items)
    assert found.columns["gold"]["binds"].tolist() == [1.0] * len(items)
    assert found.columns["empty"]["execution_match"].tolist() == [float(item.type == "nothing") for item in items]
    assert found.columns["made_up"]["execution_match"].mean() < 0.5


def test_contamination_by_statement_and_by_ngrams(items: list[EvalRow]) -> None:
    first, last = items[0], items[-1]
    same = f"SELECT 1;\n{first.group.replace('SELECT', 'select')}\nSELECT 2;"
    words = last.group.split()
    part = "SELECT other FROM elsewhere; " + " ".join(words[: int(len(words) * 0.9)])
    assert first.group != last.group
    found = {c.row_id: c for c in find_contamination(items, [same, part, "SELECT 'open"], DIALECT)}
    assert found[first.row_id].same_statement
    assert found[last.row_id].contaminated
    assert not found[last.row_id].same_statement
    clean = find_contamination(items, ["SELECT a, b, c FROM t WHERE d = 1 AND e = 2 GROUP BY f ORDER BY g"], DIALECT)
    assert not any(c.contaminated or c.seen for c in clean)


def test_training_documents_are_those_of_the_training_split(evaluated: Evaluated) -> None:
    import pyarrow.parquet as pq

    split = pq.read_table(evaluated.prompts / "prompts.parquet", columns=["split"])["split"].to_pylist()
    documents = list(training_documents(evaluated.prompts))
    assert len(documents) == split.count("train") < len(split)
    assert all(document.startswith("SELECT id FROM orders") and document.endswith(";") for document in documents)
    with pytest.raises(FimError, match="fim_prompts"):
        list(training_documents(evaluated.prompts / "nowhere"))


def test_command_runs_a_checkpoint(benchmark: Path, evaluated: Evaluated, tmp_path: Path) -> None:
    app = typer.Typer()
    command.register(app)
    arguments = [
        "benchmark",
        "run",
        str(benchmark),
        "--checkpoint",
        str(evaluated.checkpoint),
        "-o",
        str(tmp_path / "out"),
    ]
    shown = CliRunner().invoke(app, [*arguments, "--training", str(evaluated.prompts), "--max-new-tokens", "4"])
    assert shown.exit_code == 0, shown.output
    assert "most frequent" in shown.output.replace("\n", " ")
    assert "Exact" in shown.output
    assert "because they are in the training set: 0." in shown.output
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"report.json", "report.html", "predictions.parquet"}


def test_two_checkpoints_are_compared_item_by_item(
    benchmark: Path, evaluated: Evaluated, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "other", evaluated.experiment, tokenizer, seed=2)
    report = run_benchmark(
        benchmark, evaluated.checkpoint, tmp_path / "out", champion=tmp_path / "other", max_new_tokens=2
    )
    alone = run_benchmark(benchmark, tmp_path / "other", tmp_path / "alone", max_new_tokens=2)
    assert report["others"]["champion"]["metrics"] == alone["metrics"]
    difference = report["others"]["champion"]["differences"]["loss"]
    assert difference["value"] == pytest.approx(report["metrics"]["loss"]["value"] - alone["metrics"]["loss"]["value"])


def test_rows_of_another_version_are_refused(benchmark: Path, tmp_path: Path) -> None:
    shutil.copytree(benchmark, tmp_path / "old")
    place = tmp_path / "old" / "benchmark.json"
    write_sealed(place, read_sealed(place) | {"rows": "others"})
    with pytest.raises(FimError, match="another version"):
        read_benchmark(tmp_path / "old")


def test_a_missing_benchmark_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FimError, match="fim benchmark build"):
        read_benchmark(tmp_path)


def test_too_many_items_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fim_core.benchmark.build._TRIES_PER_ITEM", 0)
    with pytest.raises(FimError, match="fewer"):
        build_benchmark(tmp_path, items_per_kind=5, seed=1)
