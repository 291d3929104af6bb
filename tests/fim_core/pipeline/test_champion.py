"""The gate at the end of the pipeline, with models that are really trained."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny_pipeline import TINY, write_experiment
from typer.testing import CliRunner

from fim_core.cli.main import app
from fim_core.config import load_experiment
from fim_core.config.evaluation import GateConfig
from fim_core.errors import FimError
from fim_core.pipeline import run
from fim_core.pipeline.evaluation import champion, roll_back
from fim_core.store import Artifact, Store, champion_weights

ORDERED_BY = {
    "orders": "placed_at",
    "customers": "last_name",
    "invoices": "due_date",
    "products": "unit_price",
    "shipments": "weight",
    "employees": "hired_on",
    "sessions": "duration",
    "payments": "amount",
}
"""What the statements on each table are ordered by: all that there is to learn."""

STEPS = 300
LENIENT = {"rules": [{"metric": "loss", "rule": "finite"}]}


def write_rows(path: Path, *, shuffled: bool = False) -> None:
    """Statements whose ORDER BY is missing: a column for seven of ten, else nothing, since it is there already."""
    draw = Random(5)
    rows = []
    for number in range(700):
        table = draw.choice(list(ORDERED_BY))
        column, is_there = ORDERED_BY[table], draw.random() < 0.3
        before = f"SELECT * FROM {table} WHERE id > {number} ORDER BY {column if is_there else ''}"
        items = [{"type": "text", "text": text} for text in ("{}", before + "<fillMe> LIMIT 5;")]
        rows.append(["order", f"w{number // 4}", json.dumps(items), "" if is_there else column])
    if shuffled:
        outputs = [row[3] for row in rows]
        draw.shuffle(outputs)
        rows = [[*row[:3], output] for row, output in zip(rows, outputs, strict=True)]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["TYPE", "WORKSHEET_ID", "INPUT", "OUTPUT"])
        writer.writerows(rows)


def write(folder: Path, export: Path, **changes: Any) -> Path:
    """An experiment that learns these rows in a few seconds."""
    sections = {
        "data": {
            "sources": [{"name_or_path": str(export)}],
            "template": "plain",
            "eval_fraction": 0.25,
            "max_length": 512,
        },
        "model": {**TINY["model"], "tokenizer": {"vocab_size": 512}},
        "max_steps": STEPS,
        "epochs": STEPS,
        "micro_batch_size": 1,
        "evaluation": {"max_rows": 120, "max_new_tokens": 8, "bootstrap_samples": 200},
    }
    folder.mkdir(parents=True, exist_ok=True)
    return write_experiment(folder, **{**sections, "storage": str(folder.parent / "store"), **changes})


def fim(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def reasons(decided: Artifact, *, holds: bool) -> Sequence[str]:
    results = json.loads((decided.path / "decision.json").read_text(encoding="utf-8"))["results"]
    return [result["reason"] for result in results if result["holds"] is holds]


def value(path: Path, metric: str, predictor: str | None = None) -> float:
    report = Store(load_experiment(path).storage).current("evaluation_report", "tiny").counts
    return report["baselines"][predictor][metric] if predictor else report["metrics"][metric]["value"]


def assert_card_has_metrics(champion: Artifact, checkpoint: Artifact, exact_match: float) -> None:
    """In a card of its own, in a folder that tools can name the model after; the checkpoint's card stays."""
    weights = champion_weights(champion)
    assert weights.name == "tiny"
    assert (weights / "model.safetensors").samefile(checkpoint.path / "model.safetensors")
    results = {result.metric_type: result for result in ModelCard.load(weights / "README.md").data.eval_results}
    assert results["exact_match"].metric_value == pytest.approx(exact_match, abs=1e-4)
    card = (checkpoint.path / "README.md").read_text()
    assert "## Evaluation" not in card
    assert "| rows | 700 |" in card
    assert ModelCard(card).data.eval_results is None
    for folder in (weights, checkpoint.path):
        assert str(champion.path.parents[1]) not in (folder / "README.md").read_text()


def test_a_champion_survives_a_worse_candidate_and_a_rollback_stays(tmp_path: Path) -> None:
    write_rows(tmp_path / "export.csv")
    good = write(tmp_path / "good", tmp_path / "export.csv")
    store = Store(load_experiment(good).storage)
    exit_code, said = fim("champion", "promote", good)
    assert exit_code == 0, said
    first = champion(store, "tiny")
    assert first is not None
    assert value(good, "exact_match_sql") > value(good, "exact_match_sql", "most_frequent") + 0.2, "it has learnt"
    assert_card_has_metrics(first, store.current("trained_checkpoint"), value(good, "exact_match"))

    worse = write(tmp_path / "worse", tmp_path / "export.csv", max_steps=1)
    exit_code, said = fim("champion", "promote", worse)
    assert exit_code == 1
    assert f"refused: checkpoint {store.current('trained_checkpoint').version}; champion {first.version} stays" in said
    decided = run(load_experiment(worse))["champion_model"]
    assert any("loses" in reason for reason in reasons(decided.artifact, holds=False))
    assert [check.name for check in decided.checks if not check.passed] == ["gate"]
    assert champion(store, "tiny") == first
    shown = fim("champion", "show", worse)[1].splitlines()
    [refused] = [number for number, line in enumerate(shown) if line.startswith("refused ")]
    assert decided.artifact.version in shown[refused]
    assert any(line.startswith("- ") and "loses" in line for line in shown[refused:])
    assert not any(line.startswith("- ") for line in shown[:refused]), "why the champion is one"

    careless = write(tmp_path / "careless", tmp_path / "export.csv", max_steps=1, gate=LENIENT)
    assert fim("champion", "promote", careless)[0] == 0
    second = champion(store, "tiny")
    assert second is not None
    assert second != first
    exit_code, said = fim("champion", "rollback", careless)
    assert exit_code == 0
    assert first.version in said
    assert champion(store, "tiny") == first
    assert f"rolled back {second.version}" in fim("champion", "show", careless)[1]

    again = run(load_experiment(careless))["champion_model"].artifact
    assert champion(store, "tiny") == first, "the next run must not undo what someone did on purpose"
    assert "rolled back by hand" in reasons(again, holds=False)[0]
    assert roll_back(store, "tiny", second.version) == second
    assert run(load_experiment(careless))["champion_model"].artifact == second == champion(store, "tiny")
    assert f"rolled back {first.version}" in fim("champion", "show", careless)[1], "whoever goes on takes it back"
    with pytest.raises(FimError, match=f"Known: {first.version}"):
        roll_back(store, "tiny", "nowhere")


@pytest.mark.slow
def test_a_model_trained_on_shuffled_responses_is_refused(tmp_path: Path) -> None:
    """As first candidate and against a champion, though it is judged on its own shuffled rows."""
    write_rows(tmp_path / "shuffled.csv", shuffled=True)
    shuffled = write(tmp_path / "shuffled", tmp_path / "shuffled.csv")
    store = Store(load_experiment(shuffled).storage)
    assert fim("champion", "promote", shuffled)[0] == 1
    assert champion(store, "tiny") is None

    write_rows(tmp_path / "export.csv")
    assert fim("champion", "promote", write(tmp_path / "good", tmp_path / "export.csv"))[0] == 0
    reigning = champion(store, "tiny")
    exit_code, said = fim("champion", "promote", shuffled)
    assert exit_code == 1
    assert "not clear of" in said
    assert champion(store, "tiny") == reigning is not None


def test_a_rule_that_cannot_be_judged_promotes_nobody(tmp_path: Path) -> None:
    """Rows that hold nothing of what the only rule measures."""
    from fim_core.evaluation.gate import decide

    champion = {"metrics": {}, "differences": {}, "rows": 4}
    report = {"metrics": {}, "baselines": {}, "champion": champion, "counts": {"evaluated": 4}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    gate = GateConfig.model_validate({"rules": [{"metric": "binds", "rule": "not_worse"}]})
    decided = decide(tmp_path, gate, has_champion=True)
    assert not decided.promote
    assert decided.results[-1].holds is False
